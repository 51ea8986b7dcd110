//! The header of every answer with an artifact, be it an object, a header alone, a small answer or one that passes by: the
//! only place that decides which of upstream's fields clients get, and what is said beside them.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use url::Url;

use super::resolve::Resolved;
use crate::formats::{Asset, Format};
use crate::headers;

static ARTIFACT_SOURCE: HeaderName = HeaderName::from_static("x-artifact-source");
static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Keeps browsers from running what artifacts hold: scripts would act for whoever this host belongs to.
pub(super) const INERT: [(HeaderName, &str); 2] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, "sandbox"),
];
/// These lines as they go over HTTP/1.1.
pub(super) const INERT_LINES: &[u8] = b"X-Content-Type-Options: nosniff\r\nContent-Security-Policy: sandbox\r\n";

/// What passes by is not for caches.
pub(super) const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// What of a request the header depends on.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub asset: &'a Asset,
    pub format: &'static dyn Format,
    /// Asked for by the name of a host that is the remote's own.
    pub bound_host: bool,
}

impl<'a> Shown<'a> {
    pub(super) fn of(resolved: &'a Resolved) -> Self {
        Shown {
            asset: &resolved.asset,
            format: resolved.format,
            bound_host: resolved.bound_host,
        }
    }

    /// Whether browsers may run it: nothing but this remote is on the host.
    pub(super) fn is_active(&self) -> bool {
        self.bound_host && self.asset.remote.active_content
    }

    /// `Cache-Control` for those who may read it: what is read with a token only is in nobody else's cache.
    pub(super) fn for_readers(&self, cache_control: HeaderValue) -> HeaderValue {
        let text = cache_control.to_str().ok().filter(|_| self.asset.remote.protected);
        match text.and_then(|text| text.strip_prefix("public")) {
            Some(rest) => headers::value(&format!("private{rest}")),
            None => cache_control,
        }
    }

    /// What of a request chose between several documents or codings.
    fn vary(&self, by_coding: bool) -> Option<&'static str> {
        match (self.asset.varies, by_coding) {
            (true, true) => Some("Accept, Accept-Encoding"),
            (true, false) => Some("Accept"),
            (false, true) => Some("Accept-Encoding"),
            (false, false) => None,
        }
    }
}

/// The part that is the same for every answer of this `status` with this content. `by_coding`: the request's
/// `Accept-Encoding` had a say in it.
///
/// # Errors
/// A header that cannot be built.
pub(super) fn of_content(status: u16, of: &HeaderMap, shown: &Shown<'_>, by_coding: bool) -> Result<ResponseHeader> {
    // What is stored may have been kept by other rules.
    let mut kept = headers::kept(of, shown.asset.remote.keep());
    match headers::known_coding(of) {
        Some(coding) => kept.insert(header::CONTENT_ENCODING, headers::value(coding)),
        None => kept.remove(header::CONTENT_ENCODING),
    };
    // Without the map that keeps the spelling of names: it would be copied with every response.
    let mut response = ResponseHeader::build_no_case(status, Some(kept.len() + 12))?;
    for (name, value) in &kept {
        response.append_header(name.clone(), value.clone())?;
    }
    if matches!(status, 200 | 206) {
        if !kept.contains_key(header::CONTENT_TYPE) {
            let content_type = HeaderValue::from_static(shown.asset.media_type);
            response.insert_header(header::CONTENT_TYPE, content_type)?;
        }
        response.insert_header(header::ACCEPT_RANGES, "bytes")?;
    }
    response.insert_header(header::VIA, "1.1 artifactapi")?;
    // One document is always asked for in the same forms, so this is the content's, not the request's.
    if let Some(vary) = shown.vary(by_coding) {
        response.insert_header(header::VARY, vary)?;
    }
    Ok(response)
}

/// The header of what passes by, but for what [`finish`] adds and the framing of what has no length: for `response`,
/// upstream's to a request for `path` that came from `url`.
///
/// # Errors
/// A header that cannot be built.
pub(super) fn of_passed(response: &ResponseHeader, shown: &Shown<'_>, path: &str, url: &Url) -> Result<ResponseHeader> {
    let asked = headers::Asked {
        path,
        url,
        document: false,
        keep: shown.asset.remote.keep(),
    };
    let (kept, length) = headers::of_stored(response, &asked);
    let status = shown.format.status_of(response.status.as_u16());
    let is_coded = kept.contains_key(header::CONTENT_ENCODING);
    let mut header = of_content(status, &kept, shown, is_coded)?;
    if let Some(length) = length {
        header.insert_header(header::CONTENT_LENGTH, length)?;
    }
    if let Some(range) = response.headers.get(header::CONTENT_RANGE) {
        header.insert_header(header::CONTENT_RANGE, range.clone())?;
    }
    Ok(header)
}

/// The header of a document of `media_type` that is made here from what upstream has.
///
/// # Errors
/// A header that cannot be built.
pub(super) fn of_made(
    media_type: &'static str,
    shown: &Shown<'_>,
    (source, cache_status): (&'static str, &str),
) -> Result<ResponseHeader> {
    let mut header = of_content(200, &HeaderMap::new(), shown, false)?;
    header.insert_header(header::CONTENT_TYPE, media_type)?;
    // Only a whole one is made.
    header.remove_header(&header::ACCEPT_RANGES);
    finish(&mut header, shown, (source, headers::value(cache_status)), NO_CACHE)?;
    Ok(header)
}

/// The rest: where it came from, how long it is good, and that browsers are not to run it.
///
/// # Errors
/// A header that cannot be built.
pub(super) fn finish(
    response: &mut ResponseHeader,
    shown: &Shown<'_>,
    (source, cache_status): (&'static str, HeaderValue),
    cache_control: HeaderValue,
) -> Result<()> {
    response.insert_header(ARTIFACT_SOURCE.clone(), HeaderValue::from_static(source))?;
    response.insert_header(CACHE_STATUS.clone(), cache_status)?;
    response.insert_header(header::CACHE_CONTROL, shown.for_readers(cache_control))?;
    if !shown.is_active() {
        for (name, value) in INERT {
            response.insert_header(name, HeaderValue::from_static(value))?;
        }
    }
    Ok(())
}
