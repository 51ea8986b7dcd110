//! One question to a token service, or to a registry about itself, and its whole answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method};

use crate::config::Remote;
use crate::exact_url::ExactUrl;
use crate::upstream::Upstream;
use crate::upstream::challenge::{Challenge, challenges};
use crate::upstream::exchange::{Ask, Exchange};
use crate::upstream::failure::Failure;

/// No service's answer is longer.
const MAX_ANSWER: usize = 1 << 20;

/// What was answered.
pub struct Answer {
    pub status: u16,
    /// What the remote wants to see; of another host nothing.
    pub offered: Vec<Challenge>,
    pub body: Vec<u8>,
}

/// Asks a token service, or a registry about itself.
///
/// # Errors
/// There is no answer in time, or none that can be read.
pub async fn ask(
    upstream: &Arc<Upstream>,
    remote: &Arc<Remote>,
    question: &ExactUrl,
    credentials: Option<HeaderValue>,
) -> Result<Answer, Failure> {
    // The answer is small: its first byte and its last come together.
    let limit = remote.timeouts.connect + remote.timeouts.first_byte;
    match tokio::time::timeout(limit, ask_with_patience(upstream, remote, question, credentials)).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::timed_out(remote, &question.url)),
    }
}

/// Goes the way of any other question, redirects and addresses included.
async fn ask_with_patience(
    upstream: &Arc<Upstream>,
    remote: &Arc<Remote>,
    question: &ExactUrl,
    credentials: Option<HeaderValue>,
) -> Result<Answer, Failure> {
    let ask = Ask {
        method: Method::GET,
        accept: Some("application/json"),
        gzip: false,
        headers: Vec::new(),
        total: None,
        conditional: false,
    };
    let (upstream, remote) = (Arc::clone(upstream), Arc::clone(remote));
    let exchange = Exchange::to_token_service(upstream, remote, question.url.clone(), ask, credentials)
        .with_query(question.query.clone());
    let mut answering = exchange.ask_directly(&Bytes::new()).await?;
    let mut body = Vec::new();
    while body.len() <= MAX_ANSWER {
        match answering.piece().await {
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => break,
            Err(error) => return Err(answering.exchange.failure(&error)),
        }
    }
    // Another host's challenge says nothing of the registry.
    let offered = match answering.exchange.may_have_credentials() {
        true => challenges(&answering.header.headers),
        false => Vec::new(),
    };
    let status = answering.header.status.as_u16();
    answering.end().await;
    Ok(Answer { status, offered, body })
}
