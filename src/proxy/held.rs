//! Artifacts that are held back, whatever they are asked for by: the answer says until when.

use http::{HeaderMap, HeaderName};
use pingora_error::Result;
use pingora_proxy::Session;

use super::Client;
use super::dress::Shown;
use crate::cache::{Object, now_ms};
use crate::catalog::rfc3339;
use crate::formats::Asset;
use crate::policy::{Policy, quarantine};
use crate::session::reply::Problem;

/// When an artifact that is held back will be served, as RFC 3339 has it.
const UNTIL: HeaderName = HeaderName::from_static("x-quarantine-until");

impl Client {
    /// Answers a request for what is held back. Its index says when it was published, else `headers` do, upstream's with the
    /// content; `file` is what is stored of it. `false`: it is not held, and nothing was sent.
    pub(super) async fn is_held(
        &self,
        session: &mut Session,
        shown: &Shown<'_>,
        policy: Policy,
        (headers, file): (Option<&HeaderMap>, Option<&Object>),
    ) -> Result<bool> {
        let Shown { asset, format, .. } = *shown;
        let Some(days) = quarantine::days(asset, policy) else {
            return Ok(false);
        };
        let published = Box::pin(self.fills.published(asset, headers, file)).await;
        let held = published.and_then(|published| quarantine::held_until(days, published, now_ms()));
        let Some(until) = held else {
            return Ok(false);
        };
        let remote = &asset.remote;
        self.metrics.held(&remote.name);
        let until = rfc3339(i64::try_from(until).unwrap_or(i64::MAX));
        let detail = format!(
            "held back until {until}: it was published less than {days} days before, and this remote waits so long; \
             ask for an older one"
        );
        let problem = Problem::new(format.held_status(), detail)
            .at(&remote.name, &asset.path.encoded)
            .header(UNTIL, until);
        self.refuse(session, Some(format), problem).await
    }

    /// Whether `file` may be held: that takes the long way, also to find out when it was published.
    pub(super) fn may_be_held(&self, asset: &Asset, policy: Policy, file: &Object) -> bool {
        let Some(days) = quarantine::days(asset, policy) else {
            return false;
        };
        let Some(published) = self.fills.dates.known(file) else {
            return true;
        };
        published.is_some_and(|published| quarantine::held_until(days, published, now_ms()).is_some())
    }
}
