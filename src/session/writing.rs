//! Writing a body to a client, in pieces on which the write time-out is measured.

use std::sync::Arc;

use bytes::Bytes;
use pingora_error::Result;
use pingora_proxy::Session;

use super::unread::{self, Unread};
use crate::cache::{Object, Reader};

/// The longest piece that is written at once: what the write time-out is measured on.
pub const PIECE: usize = 256 << 10;

/// A client that is written to.
pub struct Reading<'a> {
    pub session: &'a mut Session,
}

impl Reading<'_> {
    /// Sends a piece of a body.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn write(&mut self, mut piece: Bytes, last: bool) -> Result<()> {
        if !self.session.as_downstream().is_http2() {
            while piece.len() > PIECE {
                let part = piece.split_to(PIECE);
                self.session.write_response_body(Some(part), false).await?;
            }
            return self.session.write_response_body(Some(piece), last).await;
        }
        while piece.len() > unread::PIECE {
            let part = piece.split_to(unread::PIECE);
            self.write_to_stream(part, false, 1).await?;
        }
        self.write_to_stream(piece, last, 1).await
    }

    /// Sends a body that is in memory for this client alone.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn write_whole(&mut self, mut body: Bytes) -> Result<()> {
        if !self.session.as_downstream().is_http2() {
            return self.session.write_response_body(Some(body), true).await;
        }
        // All of it stays until the last piece is taken.
        let held = body.len().div_ceil(unread::PIECE);
        while body.len() > unread::PIECE {
            let part = body.split_to(unread::PIECE);
            self.write_to_stream(part, false, held).await?;
        }
        self.write_to_stream(body, true, held).await
    }

    /// What is read at once of a body is what is written at once.
    pub fn reader(&self, object: &Arc<Object>, start: u64, end: u64) -> Reader {
        let reader = Reader::range(Arc::clone(object), start, end);
        match self.session.as_downstream().is_http2() {
            true => reader.in_pieces_of(unread::PIECE as u64),
            false => reader,
        }
    }

    async fn write_to_stream(&mut self, piece: Bytes, last: bool, held: usize) -> Result<()> {
        let write = self.session.write_response_body(Some(piece), last);
        Unread::shared().write(write, held).await
    }
}
