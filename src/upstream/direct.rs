//! One question and its answer, read by whoever asked: what is not stored, and tokens.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, header};
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::{ALPN, HttpPeer};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use super::exchange::Exchange;
use super::failure::Failure;

/// What is waited for besides upstream (a password) bounds itself; this is the last resort.
const PATIENCE: Duration = Duration::from_secs(600);
/// Addresses, redirects and challenges together.
const MAX_TRIES: usize = 32;
/// What of a body upstream has a write time-out to take.
const PIECE: usize = 64 << 10;

/// Upstream's answer: its header, then its body piece by piece. Between the pieces nothing is waited for.
pub struct Answering {
    pub header: ResponseHeader,
    pub exchange: Exchange,
    session: HttpSession,
    peer: Box<HttpPeer>,
    /// The body's first bytes, while they were looked at and not yet taken.
    ahead: BytesMut,
}

impl Exchange {
    /// Asks, with this body if it is a POST.
    ///
    /// # Errors
    /// Upstream gives no answer that can be passed on.
    pub async fn ask_directly(mut self, body: &Bytes) -> std::result::Result<Answering, Failure> {
        let (upstream, deadline) = (Arc::clone(self.upstream()), Arc::clone(&self.deadline));
        for _ in 0..MAX_TRIES {
            // Also a header that drips comes to an end.
            let tried = tokio::select! {
                tried = self.try_once(&upstream.connector, body) => tried,
                () = deadline.passed(PATIENCE) => return Err(Failure::timed_out(&self.remote, self.url())),
            };
            match tried {
                Ok((header, session, peer)) => {
                    deadline.clear();
                    return Ok(Answering {
                        header,
                        exchange: self,
                        session,
                        peer,
                        ahead: BytesMut::new(),
                    });
                }
                Err(error) if error.retry() => {}
                Err(error) => return Err(self.failure(&error)),
            }
        }
        Err(Failure {
            status: 502,
            reason: "upstream redirected, or asked for authorization, too often".to_owned(),
            unreachable: false,
        })
    }

    async fn try_once(
        &mut self,
        connector: &Connector,
        body: &Bytes,
    ) -> Result<(ResponseHeader, HttpSession, Box<HttpPeer>)> {
        let mut peer = self.peer().await?;
        // One question at a time on a connection: none of them has to wait for another's reader.
        peer.options.alpn = ALPN::H1;
        let connected = connector.get_http_session(&*peer).await;
        let (mut session, reused) = connected.map_err(|error| self.connect_failed(upstreams(error)))?;
        session.set_read_timeout(peer.options.read_timeout);
        session.set_write_timeout(peer.options.write_timeout);
        let may_repeat = self.ask().method != Method::POST;
        match self.ask_on(&mut session, body).await {
            Ok(header) => Ok((header, session, peer)),
            Err(error) => Err(self.transfer_failed(upstreams(error), reused, may_repeat)),
        }
    }

    async fn ask_on(&mut self, session: &mut HttpSession, body: &Bytes) -> Result<ResponseHeader> {
        let mut request = RequestHeader::build(Method::GET, b"/", None)?;
        self.write_request(&mut request)?;
        let is_post = self.ask().method == Method::POST;
        if is_post {
            request.insert_header(header::CONTENT_LENGTH, body.len())?;
        }
        session.write_request_header(Box::new(request)).await?;
        if is_post {
            // Of the body, each piece has its time; of the answer, the whole header.
            self.deadline.clear();
            let mut left = body.clone();
            while left.len() > PIECE {
                let piece = left.split_to(PIECE);
                session.write_request_body(piece, false).await?;
            }
            session.write_request_body(left, true).await?;
            self.deadline.set(self.remote.timeouts.first_byte);
        }
        session.finish_request_body().await?;
        loop {
            session.read_response_header().await?;
            let Some(mut response) = session.response_header().cloned() else {
                continue;
            };
            self.read_header(&mut response)?;
            if !response.status.is_informational() {
                return Ok(response);
            }
        }
    }
}

impl Answering {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// The body stopped, or drips.
    pub async fn piece(&mut self) -> Result<Option<Bytes>> {
        if !self.ahead.is_empty() {
            return Ok(Some(self.ahead.split().freeze()));
        }
        let deadline = Arc::clone(&self.exchange.deadline);
        deadline.resume();
        let read = tokio::select! {
            read = self.session.read_response_body() => read,
            () = deadline.passed(PATIENCE) => Error::e_explain(ErrorType::ReadTimedout, "the body stopped"),
        };
        let piece = read.map_err(upstreams)?;
        let length = piece.as_ref().map_or(0, Bytes::len);
        let pause = self.exchange.body_piece(length, piece.is_none())?;
        deadline.clear();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(piece)
    }

    /// The body's first bytes, at least so many unless it is shorter. They are still to be taken.
    ///
    /// # Errors
    /// Those of [`Answering::piece`].
    pub async fn beginning(&mut self, length: usize) -> Result<&[u8]> {
        let mut ahead = BytesMut::new();
        while ahead.len() < length
            && let Some(piece) = self.piece().await?
        {
            ahead.extend_from_slice(&piece);
        }
        self.ahead = ahead;
        Ok(&self.ahead)
    }

    /// Leaves the connection to the next question, if the body was read to its end and this one could have been repeated:
    /// so may the next then, should the connection turn out dead.
    pub async fn end(self) {
        let idle = self.peer.options.idle_timeout;
        let upstream = self.exchange.upstream();
        if self.exchange.ask().method != Method::POST {
            upstream
                .connector
                .release_http_session(self.session, &*self.peer, idle)
                .await;
        }
    }
}

/// An error of a connection to upstream is upstream's, whoever reads it.
fn upstreams(mut error: Box<Error>) -> Box<Error> {
    error.as_up();
    error
}
