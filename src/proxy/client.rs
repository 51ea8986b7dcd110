//! What answering clients needs, and what is remembered of one request.

use std::sync::Arc;
use std::time::Instant;

use super::resolve::Hot;
use crate::api::Api;
use crate::config::{ClientSettings, Remote};
use crate::fill::{Fills, Views};
use crate::local::Locals;
use crate::metrics::Metrics;
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
    /// What one client may hold. Settings are not reloaded.
    pub limits: ClientSettings,
}

/// What is remembered of one request.
pub struct Ctx {
    pub(super) started: Instant,
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
            _in_flight: in_flight,
            remote: None,
            cache: "none",
            source: None,
            sent: 0,
        }
    }
}
