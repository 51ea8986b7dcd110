//! Why upstream gave no answer.

use url::Url;

use crate::config::Remote;
use crate::metrics::FailureKind;

/// Why upstream gave no answer that can be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For the client: 502, 503 or 504.
    pub status: u16,
    pub reason: String,
    /// Upstream could not be reached or did not answer: a stored copy may be served instead.
    pub unreachable: bool,
}

impl Failure {
    /// What it counts as.
    pub fn kind(&self) -> FailureKind {
        match (self.status, self.unreachable) {
            (503, _) => FailureKind::Busy,
            (504, true) => FailureKind::TimedOut,
            (_, true) => FailureKind::Unreachable,
            (_, false) => FailureKind::Refused,
        }
    }

    /// The body ended early, and nothing of it has gone out: as if there had been no answer.
    pub fn broken_off() -> Self {
        Failure {
            status: 502,
            reason: "the transfer from upstream ended early; try again".to_owned(),
            unreachable: true,
        }
    }

    /// What upstream answers cannot be an answer, and so will the next one be.
    pub fn refused(reason: impl Into<String>) -> Self {
        Failure {
            status: 502,
            reason: reason.into(),
            unreachable: false,
        }
    }

    /// The host of `url` did not answer `remote` in time.
    pub fn timed_out(remote: &Remote, url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default();
        let reason = format!(
            "{host} did not answer within {} s",
            remote.timeouts.first_byte.as_secs_f32()
        );
        Failure {
            status: 504,
            reason,
            unreachable: true,
        }
    }
}
