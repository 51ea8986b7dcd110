//! What answering clients needs, and what is remembered of one request.

use std::sync::Arc;
use std::time::Instant;

use super::resolve::Hot;
use crate::access_log::AccessLog;
use crate::api::Api;
use crate::config::Remote;
use crate::fill::{Fills, Views};
use crate::local::Locals;
use crate::metrics::Metrics;
use crate::on_behalf::{OnBehalf, RequestId};
use crate::state::{InFlight, State};

/// Everything that answering a client needs.
pub struct Client {
    pub state: Arc<State>,
    pub fills: Arc<Fills>,
    pub views: Arc<Views>,
    pub locals: Arc<Locals>,
    pub metrics: Arc<Metrics>,
    pub api: Api,
    pub hot: Hot,
    /// `None`: nothing is logged.
    pub log: Option<Arc<AccessLog>>,
}

/// What is remembered of one request.
pub struct Ctx {
    pub(super) started: Instant,
    /// `None`: it was not read yet.
    pub(super) request: Option<Arc<OnBehalf>>,
    _in_flight: InFlight,
    pub(super) remote: Option<Arc<Remote>>,
    /// For metrics: how the cache came into it.
    pub(super) cache: &'static str,
    pub(super) source: Option<&'static str>,
    pub(super) sent: u64,
}

impl Ctx {
    /// Of a request that has just begun.
    pub(super) fn new(in_flight: InFlight) -> Self {
        Ctx {
            started: Instant::now(),
            request: None,
            _in_flight: in_flight,
            remote: None,
            cache: "none",
            source: None,
            sent: 0,
        }
    }

    /// The request, as those know it who do something for it.
    pub(super) fn request(&self) -> Arc<OnBehalf> {
        // Only of a request that broke off before it was looked at is there none.
        self.request.clone().unwrap_or_else(|| OnBehalf::new(RequestId::new()))
    }
}
