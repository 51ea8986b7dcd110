//! Tokens that nodes share.

use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use sha2::{Digest, Sha256};
use url::{Position, Url};

use crate::config::Remote;
use crate::exact_url::ExactUrl;

/// Where nodes find each other's tokens.
#[deny(missing_docs)]
#[async_trait]
pub trait SharedTokens: Send + Sync {
    /// A token and how long it is still good. A short while at most; `None` also when there is nobody to ask.
    async fn get(&self, name: &str) -> Option<(String, Duration)>;

    /// Shares one for what remains of its life. Waits for nobody.
    fn put(&self, name: &str, token: &str, left: Duration);
}

/// Names what nodes share a token for: the question to the token service and as whom it was asked, for this registry. Nobody
/// can tell the credentials from it who could not guess them.
pub(super) fn shared_name(remote: &Remote, question: &ExactUrl, credentials: Option<&HeaderValue>) -> String {
    let base = remote.base_url.as_ref().map_or("", Url::as_str);
    let mut print = Sha256::new();
    for part in [
        base.as_bytes(),
        question.url[..Position::AfterPath].as_bytes(),
        question.query.as_deref().unwrap_or_default().as_bytes(),
        credentials.map_or(b"", |credentials| credentials.as_bytes()),
    ] {
        print.update((part.len() as u64).to_be_bytes());
        print.update(part);
    }
    hex::encode(print.finalize())
}
