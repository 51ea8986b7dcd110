//! What another node of the fleet asks: what this one fills or has, sent while it grows.

use std::sync::Arc;

use http::header;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::Client;
use crate::cache::Reader;
use crate::fill::node::{PATH, Question};

impl Client {
    /// The question that a request carries, if it comes from a node of this fleet. For everybody else the path is one like
    /// any other.
    pub(super) fn question_of_node(&self, session: &Session, target: &[u8]) -> Option<Question> {
        if target != PATH.as_bytes() {
            return None;
        }
        let config = self.state.config();
        let secret = config.settings.node_secret.as_ref()?;
        Question::read(&session.req_header().headers, secret)
    }

    /// Answers it. What cannot be sent to its end breaks the connection: a clean end would pass a part off as the whole.
    pub(super) async fn answer_node(&self, session: &mut Session, question: Question) -> Result<()> {
        // At once, so that the other sees that this node lives: the flight may wait for upstream.
        let mut response = ResponseHeader::build(200, Some(3))?;
        response.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
        response.insert_header(header::CACHE_CONTROL, "no-store")?;
        response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        session.write_response_header(Box::new(response), false).await?;
        let (reply, object) = self.fills.reply(&question).await;
        let body = object.filter(|object| object.length().is_none_or(|length| question.from < length));
        session
            .write_response_body(Some(reply.encode()), body.is_none())
            .await?;
        let Some(object) = body else { return Ok(()) };
        self.fills.store.count_use(&object);
        let mut reader = Reader::range(Arc::clone(&object), question.from, u64::MAX);
        loop {
            match reader.next().await {
                Ok(Some(piece)) => session.write_response_body(Some(piece), false).await?,
                Ok(None) => return session.write_response_body(None, true).await,
                Err(error) => {
                    return Err(Error::because(
                        ErrorType::ReadError,
                        "reading an object for another node",
                        error,
                    ));
                }
            }
        }
    }
}
