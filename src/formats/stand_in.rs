//! A list that is answered also where upstream does not have it, because clients take an error for a broken upstream.

use bytes::Bytes;
use http::HeaderName;

/// Where such a list comes from instead.
#[derive(Debug, Clone)]
pub struct StandIn {
    /// What errors call the list.
    pub name: &'static str,
    /// The list's type: a document of another one means that upstream has none.
    pub media_type: &'static str,
    /// The decoded path of a name that stands for such a list (a tag), where upstream keeps it under one.
    pub pointer: String,
    /// The list of nothing, for where there is no such name either.
    pub empty: fn() -> Bytes,
    /// The part of the list that is asked for.
    pub filter: Option<Filter>,
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Filter {
    /// The header field that says the list is but a part, and what it says.
    pub applied: (HeaderName, &'static str),
    /// What the entries have in common.
    pub wanted: String,
    /// The list with no other entries than these.
    pub keep: fn(&[u8], &str) -> Bytes,
}

impl StandIn {
    /// Whether a document with this `Content-Type` is such a list.
    pub fn is_list(&self, content_type: &str) -> bool {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        media_type.eq_ignore_ascii_case(self.media_type)
    }
}
