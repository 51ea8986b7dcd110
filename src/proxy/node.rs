//! What another node of the fleet asks: what this one fills or has, sent while it grows.

use std::sync::Arc;

use http::{Method, header};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::Client;
use crate::cache::{ReadError, Reader};
use crate::fill::node::{Asked, MAX_FRAME, PATH, Question, Reply, Seal};

impl Client {
    /// The question that a request carries, if it comes from a node of this fleet. For everybody else the path is one like
    /// any other.
    pub(super) fn question_of_node(&self, session: &Session, target: &[u8]) -> Option<Asked> {
        if target != PATH.as_bytes() || session.req_header().method != Method::GET {
            return None;
        }
        let config = self.state.config();
        let secret = config.settings.node_secret.as_ref()?;
        let me = config.settings.node_url.as_ref().map(|url| url.as_str());
        Question::read(&session.req_header().headers, secret, me)
    }

    /// Answers it. What cannot be sent to its end breaks the connection: a clean end would pass a part off as the whole.
    pub(super) async fn answer_node(&self, session: &mut Session, asked: Asked) -> Result<()> {
        // At once, so that the other sees that this node lives: the flight may wait for upstream.
        let mut response = ResponseHeader::build(200, Some(3))?;
        response.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
        response.insert_header(header::CACHE_CONTROL, "no-store")?;
        response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        session.write_response_header(Box::new(response), false).await?;
        let (reply, object) = self.fills.reply(&asked).await;
        let is_framed = matches!(reply, Reply::Object { finished: None, .. });
        let from = asked.question.from;
        let body = object.filter(|object| is_framed || object.length().is_none_or(|length| from < length));
        session
            .write_response_body(Some(asked.seal.reply(&reply)), body.is_none())
            .await?;
        let Some(object) = body else { return Ok(()) };
        self.fills.store.count_use(&object);
        let cut = |error| Error::because(ErrorType::ReadError, "reading an object for another node", error);
        let mut reader = Reader::range(Arc::clone(&object), from, u64::MAX);
        while let Some(mut piece) = reader.next().await.map_err(cut)? {
            while is_framed && !piece.is_empty() {
                let part = piece.split_to(piece.len().min(MAX_FRAME));
                session.write_response_body(Some(Seal::frame(&part)), false).await?;
                session.write_response_body(Some(part), false).await?;
            }
            if !is_framed {
                session.write_response_body(Some(piece), false).await?;
            }
        }
        let end = match (is_framed, object.finished()) {
            (false, _) => None,
            (true, Some(finished)) => Some(asked.seal.end(finished)),
            (true, None) => return Err(cut(ReadError::FillFailed)),
        };
        session.write_response_body(end, true).await
    }
}
