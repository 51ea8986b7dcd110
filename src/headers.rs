//! Which of upstream's headers are kept: everything that describes the content, nothing that describes the connection,
//! upstream's caching, or another origin's business with a browser.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora_http::ResponseHeader;

/// RFC 9110 section 7.6.1, and what this proxy says itself.
const NEVER: &[&str] = &[
    // hop by hop
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    // upstream's caching (RFC 9111, 9211), which decides nothing here
    "age",
    "cache-control",
    "cache-status",
    "cdn-cache-control",
    "surrogate-control",
    "surrogate-key",
    "expires",
    "pragma",
    "vary",
    "warning",
    "via",
    "date",
    "x-cache",
    "x-cache-hits",
    "x-served-by",
    "x-timer",
    // another origin's business
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "public-key-pins",
    "alt-svc",
    "nel",
    "report-to",
    "reporting-endpoints",
    "expect-ct",
    "clear-site-data",
    "content-security-policy",
    "content-security-policy-report-only",
    "cross-origin-embedder-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "permissions-policy",
    "origin-agent-cluster",
    "timing-allow-origin",
    "x-frame-options",
    "x-xss-protection",
    "www-authenticate",
    "server",
    "x-powered-by",
    "location",
    "refresh",
    // said by this proxy
    "accept-ranges",
    "content-length",
    "content-range",
    "x-artifact-source",
    "x-request-id",
    "docker-distribution-api-version",
    "oci-namespace",
];

fn is_kept(name: &HeaderName, connection: &[String]) -> bool {
    let name = name.as_str();
    !NEVER.contains(&name)
        && !name.starts_with("access-control-")
        && !name.starts_with("proxy-")
        && !connection.iter().any(|nominated| nominated == name)
}

/// Names that `Connection` makes hop-by-hop too.
fn nominated(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect()
}

fn kept(headers: &HeaderMap) -> HeaderMap {
    let connection = nominated(headers);
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if is_kept(name, &connection) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// The headers to store with a 200, and its length. `path`, as it was asked for, decides what a wrong `Content-Encoding`
/// is: `.tar.gz` and `.apk` files are not encodings, their bytes pass untouched even when upstream says so.
pub fn of_stored(response: &ResponseHeader, path: &str) -> (HeaderMap, Option<u64>) {
    let mut kept = kept(&response.headers);
    let compressed_file = [
        ".gz", ".tgz", ".apk", ".zst", ".xz", ".bz2", ".zip", ".whl", ".rpm", ".crate",
    ]
    .iter()
    .any(|extension| path.to_ascii_lowercase().ends_with(extension));
    let said = |coding: &str| {
        kept.get(header::CONTENT_ENCODING)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(coding.as_bytes()))
    };
    let (identity, mislabelled) = (said("identity"), compressed_file && (said("gzip") || said("x-gzip")));
    if mislabelled || identity {
        kept.remove(header::CONTENT_ENCODING);
    }
    let length = response
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok());
    // No body is that long, and the largest number of all means "not known yet" elsewhere.
    let length = length.filter(|length: &u64| *length < u64::MAX / 2);
    (kept, length)
}

/// The headers to pass on with an answer that is not stored.
pub fn of_answer(response: &ResponseHeader) -> HeaderMap {
    let mut kept = kept(&response.headers);
    kept.remove(header::ETAG);
    kept.remove(header::LAST_MODIFIED);
    kept
}

/// Whether the body ends by a chunk of its own (RFC 9112 section 7.1).
pub fn is_chunked(response: &ResponseHeader) -> bool {
    response.headers.get_all(header::TRANSFER_ENCODING).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.to_ascii_lowercase().contains("chunked"))
    })
}

/// Whether upstream says that it answers ranges.
pub fn has_ranges(response: &ResponseHeader) -> bool {
    response
        .headers
        .get(header::ACCEPT_RANGES)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"bytes"))
}

/// `Retry-After`, seconds or a date.
pub fn retry_after(response: &ResponseHeader) -> Option<String> {
    retry_after_of(&response.headers)
}

/// As [`retry_after`], from headers that were kept.
pub fn retry_after_of(headers: &HeaderMap) -> Option<String> {
    headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

/// For views: what describes the original's bytes does not survive a rewriting (RFC 9110 section 8).
pub fn of_view(original: &HeaderMap) -> HeaderMap {
    let mut kept = original.clone();
    for name in [
        "etag",
        "content-encoding",
        "content-md5",
        "content-digest",
        "repr-digest",
        "digest",
        "want-digest",
        "accept-ranges",
        "x-goog-hash",
        "x-amz-checksum-sha256",
        "x-checksum-sha1",
        "x-checksum-sha256",
        "x-checksum-md5",
    ] {
        kept.remove(name);
    }
    kept
}

/// A header value from text that was made here.
pub fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_connection_or_of_another_origin_is_kept() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Set-Cookie", "a=b"),
            ("Access-Control-Allow-Origin", "*"),
            ("Strict-Transport-Security", "max-age=1"),
            ("Cache-Control", "no-store"),
            ("Content-Type", "text/plain"),
            ("Content-Disposition", "attachment"),
            ("ETag", "\"1\""),
            ("X-Checksum-Sha256", "00"),
            ("Content-Length", "5"),
        ] {
            response.append_header(name, value).unwrap();
        }
        let (kept, length) = of_stored(&response, "/a/b.txt");
        let names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        assert_eq!(
            names,
            ["content-type", "content-disposition", "etag", "x-checksum-sha256"]
        );
        assert_eq!(length, Some(5));
    }

    #[test]
    fn a_compressed_file_is_not_an_encoding() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        response.append_header("Content-Encoding", "gzip").unwrap();
        assert!(
            of_stored(&response, "/x/APKINDEX.tar.gz")
                .0
                .get("content-encoding")
                .is_none()
        );
        assert!(
            of_stored(&response, "/x/index.json")
                .0
                .get("content-encoding")
                .is_some()
        );
    }
}
