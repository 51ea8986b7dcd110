//! A short question and its whole answer: to a token service, or to a registry about itself.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method};

use super::Upstream;
use super::challenge::challenges;
use super::exchange::{Ask, Exchange};
use super::failure::Failure;
use super::password::Passwords;
use super::token::{Answer, Asker};
use crate::config::Remote;
use crate::exact_url::ExactUrl;

/// No service's answer is longer.
const MAX_ANSWER: usize = 1 << 20;

#[async_trait]
impl Asker for Arc<Upstream> {
    async fn ask(
        &self,
        remote: &Arc<Remote>,
        question: &ExactUrl,
        credentials: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        // The answer is small: its first byte and its last come together.
        let limit = remote.timeouts.connect + remote.timeouts.first_byte;
        match tokio::time::timeout(limit, ask(self, remote, question, credentials)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::timed_out(remote, &question.url)),
        }
    }

    fn passwords(&self) -> &Passwords {
        &self.passwords
    }
}

/// Goes the way of any other question, redirects and addresses included.
async fn ask(
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
