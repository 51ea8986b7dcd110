//! What a registry wants of everybody: the question for its version tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Tokens;
use super::asker::{Answer, Asker};
use crate::config::Remote;
use crate::exact_url::ExactUrl;
use crate::formats;
use crate::upstream::challenge::{Challenge, best};
use crate::upstream::failure::Failure;

/// How long a registry wants of everybody what it wanted when it was asked.
const GREETED: Duration = Duration::from_secs(60);

impl Tokens {
    /// What a registry wants to see of whoever comes (distribution-spec, "Determining Support"), for a remote that has
    /// credentials.
    pub(super) async fn wanted_of_everybody(
        &self,
        upstream: &dyn Asker,
        remote: &Arc<Remote>,
    ) -> Result<Option<Challenge>, Failure> {
        if remote.credentials.is_none() || remote.base_url.is_none() {
            return Ok(None);
        }
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(slot) = self.greetings.get_or_insert_with(&self.key(remote, ""), fresh);
        let waiting_since = Instant::now();
        let mut greeting = slot.lock().await;
        match &*greeting {
            Some((at, wanted)) if *at >= waiting_since => return wanted.clone(),
            Some((at, Ok(wanted))) if at.elapsed() < GREETED => return Ok(wanted.clone()),
            _ => {}
        }
        let wanted = self.greet(upstream, remote).await;
        *greeting = Some((Instant::now(), wanted.clone()));
        wanted
    }

    async fn greet(&self, upstream: &dyn Asker, remote: &Arc<Remote>) -> Result<Option<Challenge>, Failure> {
        let Some(url) = formats::of_remote(remote).greeting_url(remote) else {
            return Ok(None);
        };
        let question = ExactUrl { url, query: None };
        let Answer { status, offered, .. } = upstream.ask(remote, &question, None).await?;
        match status {
            401 => Ok(best(offered)),
            // Without what it wants, a question might be answered as if there were nothing.
            429 | 500.. => Err(Failure {
                status: if status == 429 { 503 } else { 502 },
                reason: format!("upstream answered {status} to the question whom it lets in"),
                unreachable: true,
            }),
            _ => Ok(None),
        }
    }
}
