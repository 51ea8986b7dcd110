//! How what is served was come by, and how `Cache-Status` (RFC 9211) says that.

use std::borrow::Cow;

use super::Ctx;
use crate::cache::{Left, Object};
use crate::fill::How;

/// How what is served was come by.
pub(super) struct Provenance {
    pub(super) source: &'static str,
    pub(super) cache_status: Cow<'static, str>,
    pub(super) fresh_from_upstream: bool,
}

impl Provenance {
    /// After a flight that brought `object`.
    pub(super) fn of(object: &Object, how: &How, expired: bool, joined: bool, ctx: &mut Ctx) -> Provenance {
        let stored = if object.head.unframed { "" } else { "; stored" };
        let forwarded = if expired { "stale" } else { "miss" };
        let collapsed = if joined { "; collapsed" } else { "" };
        let (cache, source, cache_status) = match how {
            How::Fetched => (
                match (joined, expired) {
                    (true, _) => "collapsed",
                    (false, true) => "expired",
                    (false, false) => "miss",
                },
                "remote",
                format!("artifactapi; fwd={forwarded}; fwd-status=200{stored}{collapsed}").into(),
            ),
            How::Found => ("hit", "cache", Cow::Borrowed("artifactapi; hit")),
            How::Restored => ("hit", "cache", Cow::Borrowed("artifactapi; hit; detail=shared")),
            How::Revalidated(status) => (
                "revalidated",
                "cache",
                format!("artifactapi; fwd=stale; fwd-status={status}{collapsed}").into(),
            ),
            How::Stale(status) => {
                let why = status.map_or("detail=unreachable".to_owned(), |status| format!("fwd-status={status}"));
                (
                    "stale",
                    "cache",
                    format!("artifactapi; fwd=stale; {why}{collapsed}").into(),
                )
            }
        };
        ctx.cache = cache;
        Provenance {
            source,
            cache_status,
            fresh_from_upstream: *how == How::Fetched,
        }
    }
}

/// `Cache-Status` of a hit.
pub(super) fn hit_status(left: Left) -> Cow<'static, str> {
    match left {
        Left::ForEver => Cow::Borrowed("artifactapi; hit"),
        Left::For(left) => format!("artifactapi; hit; ttl={}", left.as_secs()).into(),
        Left::Expired(since) => format!("artifactapi; hit; ttl=-{}; detail=offline", since.as_secs()).into(),
    }
}
