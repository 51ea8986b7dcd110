//! artifactapi: a caching reverse proxy for package registries and artifact hosts, built on Pingora.
//!
//! The folder list is the architecture; `docs/architecture.md` tells it on one page.

pub mod access_log;
pub mod api;
pub mod backends;
pub mod breaker;
pub mod bucket;
pub mod cache;
pub mod catalog;
pub mod config;
pub mod console;
pub mod deadline;
pub mod exact_url;
pub mod fields;
pub mod fill;
pub mod fleet;
pub mod formats;
pub mod gunzip;
pub mod hand_over;
pub mod headers;
pub mod in_process;
pub mod life;
pub mod listing;
pub mod local;
pub mod metrics;
pub mod on_behalf;
pub mod policy;
pub mod proxy;
pub mod relist;
pub mod secrets;
pub mod session;
pub mod state;
pub mod status;
pub mod token;
pub mod upstream;
