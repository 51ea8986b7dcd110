//! An object to a client: GET, HEAD, ranges, conditions. The only place that writes artifact responses.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::dress::{self, Shown};
use super::range::{self, Condition, Ranges};
use crate::cache::{Body, Left, Object, Prepared, Reader, Stage};
use crate::formats::Class;
use crate::headers;
use crate::policy::{Basis, Policy};
use crate::session::writing::{PIECE, Reading};

/// What a response says beside the object's own header.
pub(super) struct Dress<'a> {
    pub policy: Policy,
    pub left: Left,
    /// Seconds since upstream was last known to have this, for `Age`; none when it comes from there now.
    pub age: Option<u64>,
    pub source: &'static str,
    pub cache_status: Cow<'static, str>,
    pub shown: Shown<'a>,
    /// The request's `Accept-Encoding` had a say in it.
    pub by_coding: bool,
    /// What the client calls the document's type, where that is an alias of upstream's word for it.
    pub presented_as: Option<&'static str>,
    pub head_only: bool,
}

/// The header of the response, but for what range and framing decide.
fn dressed(prepared: &ResponseHeader, dress: &Dress<'_>) -> Result<Box<ResponseHeader>> {
    let mut response = Box::new(prepared.clone());
    let cache_status = match &dress.cache_status {
        Cow::Borrowed(text) => HeaderValue::from_static(text),
        Cow::Owned(text) => headers::value(text),
    };
    let origin = (dress.source, cache_status);
    dress::finish(&mut response, &dress.shown, origin, cache_control(dress))?;
    if let Some(name) = dress.presented_as {
        response.insert_header(header::CONTENT_TYPE, name)?;
    }
    if let Some(age) = dress.age {
        response.insert_header(header::AGE, HeaderValue::from(age))?;
    }
    Ok(response)
}

/// The header, with `lines`, the `id` of the request and all of the framing of a whole 200, as it goes over HTTP/1.1; `None`
/// where it takes [`serve`].
pub(super) fn write_head(
    object: &Arc<Object>,
    dress: &Dress<'_>,
    (lines, id): (&[u8], &[u8]),
    head: &mut Vec<u8>,
) -> Option<()> {
    let length = object.length().filter(|length| *length > 0)?;
    let prepared = prepared(object, dress).ok()?;
    // Links may have to be told otherwise.
    if dress.presented_as.is_some() || prepared.header.headers.contains_key(header::LINK) {
        return None;
    }
    head.clear();
    head.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    head.extend_from_slice(&prepared.lines);
    head.extend_from_slice(lines);
    if !dress.shown.is_active() {
        head.extend_from_slice(dress::INERT_LINES);
    }
    let mut line = |name: &[u8], value: &[u8]| {
        for part in [name, value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    };
    line(b"X-Artifact-Source: ", dress.source.as_bytes());
    line(b"Cache-Status: ", dress.cache_status.as_bytes());
    let cache_control = dress.shown.for_readers(cache_control(dress));
    line(b"Cache-Control: ", cache_control.as_bytes());
    if let Some(age) = dress.age {
        line(b"Age: ", HeaderValue::from(age).as_bytes());
    }
    line(b"X-Request-Id: ", id);
    line(b"Content-Length: ", HeaderValue::from(length).as_bytes());
    with_date(|date| line(b"Date: ", date.as_bytes()));
    head.extend_from_slice(b"Connection: keep-alive\r\n\r\n");
    Some(())
}

/// Now as `Date` says it, spelled anew once a second.
fn with_date(write: impl FnOnce(&str)) {
    thread_local! {
        static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(at, date)| {
        if *at != second {
            (*at, *date) = (second, httpdate::fmt_http_date(now));
        }
        write(date);
    });
}

/// The header of a 200 with a whole body of `length` bytes.
///
/// # Errors
/// A header that cannot be built.
pub(super) fn whole(object: &Arc<Object>, dress: &Dress<'_>, length: usize) -> Result<Box<ResponseHeader>> {
    let prepared = prepared(object, dress)?;
    let mut response = dressed(&prepared.header, dress)?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length))?;
    Ok(response)
}

/// The body of a complete object, where it is in memory and short enough for one write.
pub(super) fn small_body(object: &Object) -> Option<Bytes> {
    match &object.body {
        Body::Memory(bytes, _) if object.is_complete() && (1..=PIECE).contains(&bytes.len()) => Some(bytes.clone()),
        _ => None,
    }
}

/// Whether a request asks for less than a whole 200.
pub(super) fn has_conditions(headers: &HeaderMap) -> bool {
    [
        header::RANGE,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_MATCH,
        header::IF_UNMODIFIED_SINCE,
    ]
    .iter()
    .any(|name| headers.contains_key(name))
}

/// Sends `object`. Returns the body bytes sent.
///
/// # Errors
/// The client is gone, or a growing object failed: the connection must then break.
pub(super) async fn serve(client: &mut Reading<'_>, object: &Arc<Object>, dress: &Dress<'_>) -> Result<u64> {
    let session = &mut *client.session;
    let request = session.req_header();
    let head_only = dress.head_only || request.method == Method::HEAD;
    let prepared = prepared(object, dress)?;
    let mut response = dressed(&prepared.header, dress)?;
    let etag = prepared
        .header
        .headers
        .get(header::ETAG)
        .and_then(|value| value.to_str().ok());
    let last_modified = object.head.last_modified();
    match range::evaluate(&request.headers, etag, last_modified) {
        Condition::NotModified => {
            return not_modified(session, response).await;
        }
        Condition::Failed => {
            response.set_status(412)?;
            return without_body(session, response).await;
        }
        Condition::Pass => {}
    }
    let length = object.length();
    let ranges = match (
        request.headers.get(header::RANGE).and_then(|value| value.to_str().ok()),
        length,
    ) {
        (Some(range), Some(length))
            if request.method == Method::GET && range::if_range_holds(&request.headers, etag, last_modified) =>
        {
            range::parse(range, length)
        }
        _ => Ranges::Whole,
    };
    let (start, end) = match ranges {
        Ranges::Whole => {
            match length {
                Some(length) => response.insert_header(header::CONTENT_LENGTH, length)?,
                None => response.insert_header(header::TRANSFER_ENCODING, "chunked")?,
            }
            (0, length.unwrap_or(u64::MAX))
        }
        Ranges::Unsatisfiable => {
            response.set_status(416)?;
            response.insert_header(header::CONTENT_RANGE, format!("bytes */{}", length.unwrap_or(0)))?;
            response.remove_header(&header::CONTENT_TYPE);
            return without_body(session, response).await;
        }
        Ranges::One(start, end) => {
            response.set_status(206)?;
            response.insert_header(
                header::CONTENT_RANGE,
                format!("bytes {start}-{}/{}", end - 1, length.unwrap_or(0)),
            )?;
            response.insert_header(header::CONTENT_LENGTH, end - start)?;
            (start, end)
        }
        Ranges::Several(ranges) => return several(client, object, response, &ranges).await,
    };
    if head_only || start == end {
        session.write_response_header(response, true).await?;
        return Ok(0);
    }
    session.write_response_header(response, false).await?;
    let mut sent = 0;
    let mut reader = client.reader(object, start, end);
    let whole = if end == u64::MAX { None } else { Some(end - start) };
    while let Some(piece) = next(&mut reader).await? {
        sent += piece.len() as u64;
        client.write(piece, whole == Some(sent)).await?;
    }
    if whole.is_some_and(|whole| sent != whole) {
        return Err(Error::explain(
            ErrorType::ReadError,
            "a stored object is shorter than it says",
        ));
    }
    if whole.is_none() {
        client.session.write_response_body(None, true).await?;
    }
    Ok(sent)
}

async fn next(reader: &mut Reader) -> Result<Option<Bytes>> {
    reader
        .next()
        .await
        .map_err(|error| Error::because(ErrorType::ReadError, "reading what is served", error))
}

/// The part of the header that is the same for every response, built once for each object.
fn prepared(object: &Arc<Object>, dress: &Dress<'_>) -> Result<Arc<Prepared>> {
    let headers_keep = &dress.shown.asset.remote.headers_keep;
    let slot = object.prepared.get();
    if let Some(slot) = slot {
        let known = slot.load();
        // A reload may have changed what is kept.
        if known.headers_keep == *headers_keep {
            return Ok(Arc::clone(&known));
        }
    }
    let mut response = dress::of_content(200, &object.head.headers, &dress.shown, dress.by_coding)?;
    if let (Some(etag), None) = (object.etag(), object.head.etag()) {
        response.insert_header(header::ETAG, etag)?;
    }
    let mut lines = Vec::with_capacity(256);
    response.header_to_h1_wire(&mut lines);
    let response = Arc::new(Prepared {
        headers_keep: headers_keep.clone(),
        header: response,
        lines,
    });
    // A digest is only known at the end, and with it the validator.
    match slot {
        Some(slot) => slot.store(Arc::clone(&response)),
        None if object.is_complete() => _ = object.prepared.set(ArcSwap::new(Arc::clone(&response))),
        None => {}
    }
    Ok(response)
}

/// What a client's own cache may do with it.
fn cache_control(dress: &Dress<'_>) -> HeaderValue {
    let seconds = |left: Duration| left.as_secs();
    match (dress.policy.class, dress.left, dress.policy.basis) {
        (_, Left::Expired(_), _) => HeaderValue::from_static("public, max-age=0"),
        (Class::Immutable, Left::ForEver, Basis::Unrestricted) => HeaderValue::from_static("public, max-age=3600"),
        (Class::Immutable, Left::ForEver, _) => HeaderValue::from_static("public, max-age=31536000, immutable"),
        (Class::Immutable, Left::For(left), Basis::Unrestricted) => {
            headers::value(&format!("public, max-age={}", seconds(left).min(3600)))
        }
        (_, Left::For(left), _) => headers::value(&format!("public, max-age={}", seconds(left))),
        (Class::Mutable, Left::ForEver, _) => HeaderValue::from_static("public, max-age=0"),
    }
}

async fn not_modified(session: &mut Session, mut response: Box<ResponseHeader>) -> Result<u64> {
    response.set_status(304)?;
    // RFC 9110 section 15.4.5: what describes the content is not repeated.
    for name in [
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
        header::CONTENT_DISPOSITION,
    ] {
        response.remove_header(&name);
    }
    session.write_response_header(response, true).await?;
    Ok(0)
}

async fn without_body(session: &mut Session, mut response: Box<ResponseHeader>) -> Result<u64> {
    response.remove_header(&header::CONTENT_ENCODING);
    response.insert_header(header::CONTENT_LENGTH, 0)?;
    session.write_response_header(response, true).await?;
    Ok(0)
}

/// `multipart/byteranges` (RFC 9110 section 14.6), its length known beforehand.
async fn several(
    client: &mut Reading<'_>,
    object: &Arc<Object>,
    mut response: Box<ResponseHeader>,
    ranges: &[(u64, u64)],
) -> Result<u64> {
    let length = object.length().unwrap_or(0);
    let boundary = format!("artifactapi-{:016x}", object.id);
    let content_type = response
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("")
        .to_owned();
    let heads: Vec<String> = ranges
        .iter()
        .enumerate()
        .map(|(index, (start, end))| {
            let line = if index == 0 { "" } else { "\r\n" };
            let last = end - 1;
            format!("{line}--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: bytes {start}-{last}/{length}\r\n\r\n")
        })
        .collect();
    let tail = format!("\r\n--{boundary}--\r\n");
    let sum: u64 = heads.iter().map(|head| head.len() as u64).sum::<u64>()
        + ranges.iter().map(|(start, end)| end - start).sum::<u64>()
        + tail.len() as u64;
    response.set_status(206)?;
    response.insert_header(
        header::CONTENT_TYPE,
        format!("multipart/byteranges; boundary={boundary}"),
    )?;
    response.insert_header(header::CONTENT_LENGTH, sum)?;
    client.session.write_response_header(response, false).await?;
    for (head, (start, end)) in heads.into_iter().zip(ranges) {
        client.write(head.into(), false).await?;
        let mut reader = client.reader(object, *start, *end);
        let mut sent = 0;
        while let Some(piece) = next(&mut reader).await? {
            sent += piece.len() as u64;
            client.write(piece, false).await?;
        }
        if sent != end - start {
            return Err(Error::explain(
                ErrorType::ReadError,
                "a stored object is shorter than it says",
            ));
        }
    }
    client.write(tail.into(), true).await?;
    Ok(sum)
}

/// Whether the request can only be answered from a complete object: a HEAD that must tell the length, a range or a
/// condition while length or validator are not known yet.
pub(super) fn needs_whole(session: &Session, object: &Object) -> bool {
    let request = session.req_header();
    let conditional = [header::IF_NONE_MATCH, header::IF_MATCH, header::IF_RANGE]
        .iter()
        .any(|name| request.headers.contains_key(name));
    let length_unknown = object.length().is_none();
    // RFC 9112 section 6.1: no chunks to HTTP/1.0, and an end that only closes the connection would look like a cut.
    if length_unknown && request.version == http::Version::HTTP_10 {
        return true;
    }
    (length_unknown && (request.method == Method::HEAD || request.headers.contains_key(header::RANGE)))
        || (conditional && object.etag().is_none())
}

/// Waits until the first bytes of a growing object can be read, so that an early failure is still an error answer.
/// `false`: it failed.
pub(super) async fn has_begun(object: &Arc<Object>) -> bool {
    object.begun().await.state != Stage::Failed
}
