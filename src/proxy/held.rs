//! Artifacts that are held back, whatever they are asked for by: the answer says until when.

use http::{HeaderMap, HeaderName};
use pingora_error::Result;
use pingora_proxy::Session;

use super::Client;
use crate::cache::now_ms;
use crate::catalog::rfc3339;
use crate::formats::{Asset, Format};
use crate::policy::{Policy, quarantine};
use crate::session::reply::Problem;

/// When an artifact that is held back will be served, as RFC 3339 has it.
const UNTIL: HeaderName = HeaderName::from_static("x-quarantine-until");

impl Client {
    /// Answers a request for what is held back; `headers` are upstream's, of the answer that has the content. `false`: it is
    /// not held, and nothing was sent.
    pub(super) async fn is_held(
        &self,
        session: &mut Session,
        (asset, format): (&Asset, &dyn Format),
        policy: Policy,
        headers: &HeaderMap,
    ) -> Result<bool> {
        let Some(until) = quarantine::held_until(asset, policy, headers, now_ms()) else {
            return Ok(false);
        };
        let remote = &asset.remote;
        self.metrics.held(&remote.name);
        let until = rfc3339(i64::try_from(until).unwrap_or(i64::MAX));
        let days = remote.quarantine_days.unwrap_or_default();
        let detail = format!(
            "held back until {until}: it was published less than {days} days before, and this remote waits so long; \
             ask for an older one"
        );
        let problem = Problem::new(format.held_status(), detail)
            .at(&remote.name, &asset.path.encoded)
            .header(UNTIL, until);
        self.refuse(session, Some(format), problem).await
    }
}
