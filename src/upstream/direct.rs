//! One question on a connection of its own: where there is no client's request that Pingora could carry on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::ALPN;
use pingora_error::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use super::exchange::{Exchange, Failure};

/// What is waited for besides upstream (a password) bounds itself; this is the last resort.
const PATIENCE: Duration = Duration::from_secs(600);
/// Addresses, redirects and challenges together.
const MAX_TRIES: usize = 32;
/// What of a body upstream has a write time-out to take.
const PIECE: usize = 64 << 10;

/// Upstream's answer: its header, then its body piece by piece.
pub struct Answering {
    pub header: ResponseHeader,
    pub exchange: Exchange,
    session: HttpSession,
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
                () = deadline.passed(PATIENCE) => return Err(Exchange::timed_out(&self.remote, self.url())),
            };
            match tried {
                Ok((header, session)) => {
                    return Ok(Answering {
                        header,
                        exchange: self,
                        session,
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

    async fn try_once(&mut self, connector: &Connector, body: &Bytes) -> Result<(ResponseHeader, HttpSession)> {
        let mut peer = self.peer().await?;
        // Such questions are few: a connection each is simple, and none is left over.
        peer.options.alpn = ALPN::H1;
        let connected = connector.get_http_session(&*peer).await;
        let (mut session, _) = connected.map_err(|error| self.connect_failed(upstreams(error)))?;
        session.set_read_timeout(peer.options.read_timeout);
        session.set_write_timeout(peer.options.write_timeout);
        let mut request = RequestHeader::build(Method::GET, b"/", None)?;
        self.write_request(&mut request)?;
        if self.ask().method == Method::POST {
            request.insert_header(header::CONTENT_LENGTH, body.len())?;
        }
        let failed = |mut error: Box<Error>| {
            error.set_retry(false);
            upstreams(error)
        };
        session.write_request_header(Box::new(request)).await.map_err(failed)?;
        if self.ask().method == Method::POST {
            // Of the body, each piece has its time; of the answer, the whole header.
            self.deadline.clear();
            let mut left = body.clone();
            while left.len() > PIECE {
                let piece = left.split_to(PIECE);
                session.write_request_body(piece, false).await.map_err(failed)?;
            }
            session.write_request_body(left, true).await.map_err(failed)?;
            self.deadline.set(self.remote.timeouts.first_byte);
        }
        session.finish_request_body().await.map_err(failed)?;
        loop {
            session.read_response_header().await.map_err(failed)?;
            let Some(mut response) = session.response_header().cloned() else {
                continue;
            };
            self.read_header(&mut response)?;
            if !response.status.is_informational() {
                return Ok((response, session));
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
        let piece = self.session.read_response_body().await.map_err(upstreams)?;
        let length = piece.as_ref().map_or(0, Bytes::len);
        self.exchange.body_piece(length, piece.is_none())?;
        Ok(piece)
    }

    /// Closes the connection.
    pub async fn end(mut self) {
        self.session.shutdown().await;
    }
}

/// An error of a connection to upstream is upstream's, whoever reads it.
fn upstreams(mut error: Box<Error>) -> Box<Error> {
    error.as_up();
    error
}
