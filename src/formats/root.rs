//! The API that clients of a package type ask below a path that they choose themselves, whichever remote they mean.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{Asset, Format};
use crate::config::{Config, Remote};

/// A request below the root of a package type.
pub struct Below<'a> {
    pub config: &'a Config,
    /// The remote that the host is bound to.
    pub bound: Option<&'a Arc<Remote>>,
    pub method: &'a Method,
    /// The path below the root, as received.
    pub raw: &'a [u8],
    /// Verbatim, without `?`.
    pub query: Option<&'a str>,
}

/// What a request below a root means.
#[derive(Debug)]
pub enum Meant {
    /// What is under an encoded path of a remote, with this query.
    Artifact {
        remote: Arc<Remote>,
        path: String,
        query: Option<String>,
    },
    /// A document of the API that is no remote's.
    Document(serde_json::Value),
    /// Nothing that is served here.
    Refused {
        status: u16,
        detail: String,
        /// The encoded path, where the error is about one.
        path: Option<String>,
    },
}

/// A package type whose clients ask below a root of its own.
#[deny(missing_docs)]
pub trait Root: Format {
    /// The root, with slashes on both ends.
    fn path(&self) -> &'static str;

    /// Which remote a request is for, and which path of it.
    fn choose(&self, below: Below<'_>) -> Meant;

    /// What every answer to a request for `target` says in its header, wherever it is written, in place of what `headers`
    /// have up to now; nothing takes a field away.
    fn says(&self, target: &str, headers: &HeaderMap) -> Vec<(HeaderName, Option<HeaderValue>)>;

    /// What [`Root::says`] comes to for `asset` as it is stored, in lines of HTTP/1.1. `None`: that depends on more.
    fn says_of_stored(&self, asset: &Asset, target: &[u8]) -> Option<&'static [u8]>;
}
