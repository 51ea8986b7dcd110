//! Artifacts that are held back, whatever they are asked for by: the answer says until when.

use http::{HeaderMap, HeaderName};
use pingora_error::Result;
use pingora_proxy::Session;

use super::Client;
use super::dress::Shown;
use crate::cache::{Object, now_ms};
use crate::catalog::rfc3339;
use crate::config::Mode;
use crate::formats::Asset;
use crate::formats::hold::{Free, Verdict};
use crate::policy::{Policy, quarantine};
use crate::session::public;
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
        if !quarantine::covers(asset, policy) {
            return Ok(false);
        }
        let dates = Box::pin(self.fills.dates_of(asset, headers, file)).await;
        let remote = &asset.remote;
        let (until, why) = match self.fills.judge(asset, dates, now_ms()) {
            Verdict::Held { until, why } => (until, why),
            Verdict::Free(Free::Exempt(reason)) => {
                tracing::info!(remote = %remote.name, path = %asset.path.encoded, %reason, "exempt from quarantine");
                return Ok(false);
            }
            Verdict::Free(_) => return Ok(false),
        };
        let trusted = &self.state.config().settings.trusted_proxies;
        let client = public::client(trusted, &public::arrival(session));
        self.api.asked.note(asset, dates, client);
        if remote.quarantine.mode == Mode::Observe {
            self.metrics.observed(&remote.name);
            tracing::info!(remote = %remote.name, path = %asset.path.encoded, reason = %why, "would be held back by quarantine");
            return Ok(false);
        }
        self.metrics.held(&remote.name);
        let until = until.map(|until| rfc3339(i64::try_from(until).unwrap_or(i64::MAX)));
        let period = until
            .as_deref()
            .map_or(String::new(), |until| format!(" until {until}"));
        let detail = format!("held back{period} by quarantine: {why}; ask for an older one");
        let problem = Problem::new(format.held_status(), detail).at(&remote.name, &asset.path.encoded);
        let problem = match until {
            Some(until) => problem.header(UNTIL, until),
            None => problem,
        };
        self.refuse(session, Some(format), problem).await
    }

    /// Whether `file` may be held: that takes the long way, also to find out when it was published.
    pub(super) fn may_be_held(&self, asset: &Asset, policy: Policy, file: &Object) -> bool {
        if !quarantine::covers(asset, policy) {
            return false;
        }
        let now = now_ms();
        let Some(dates) = self.fills.listed.known(file, now) else {
            return true;
        };
        self.fills.judge(asset, dates, now).is_held()
    }
}
