//! What tokens need of whoever can ask.

use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderValue;

use crate::config::Remote;
use crate::exact_url::ExactUrl;
use crate::upstream::challenge::Challenge;
use crate::upstream::failure::Failure;
use crate::upstream::password::Passwords;

/// What was answered.
pub(crate) struct Answer {
    pub status: u16,
    /// What the remote wants to see; of another host nothing.
    pub offered: Vec<Challenge>,
    pub body: Vec<u8>,
}

/// Asks token services, and registries about themselves.
#[async_trait]
pub(crate) trait Asker: Send + Sync {
    /// Asks `question`, with these credentials.
    ///
    /// # Errors
    /// There is no answer in time, or none that can be read.
    async fn ask(
        &self,
        remote: &Arc<Remote>,
        question: &ExactUrl,
        credentials: Option<HeaderValue>,
    ) -> Result<Answer, Failure>;

    /// The credentials of remotes.
    fn passwords(&self) -> &Passwords;
}
