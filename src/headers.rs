//! Which of upstream's header fields are kept: those that describe the content, by name. Whatever else upstream says is
//! its own business with a connection, a cache or a browser, or an order to a server in front (`X-Accel-Redirect`).

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora_http::ResponseHeader;
use url::Url;

/// What clients and mirrors read of content.
const KEPT: &[&str] = &[
    "etag",
    "last-modified",
    "link",
    "digest",
    "repr-digest",
    "x-goog-hash",
    "x-repo-commit",
];
/// What clients and mirrors read of content, by how names begin.
const KEPT_FAMILIES: &[&str] = &[
    "content-",
    "ratelimit",
    "x-amz-checksum-",
    "x-amz-meta-",
    "x-checksum-",
    "x-linked-",
];
/// What is said by this proxy alone, or by nobody: the connection's (RFC 9110 section 7.6.1), framing, caching, cookies.
const NEVER: &[&str] = &[
    "accept-ranges",
    "age",
    "cache-control",
    "cache-status",
    "connection",
    "content-length",
    "content-range",
    "content-security-policy",
    "content-security-policy-report-only",
    "date",
    "expires",
    "http2-settings",
    "keep-alive",
    "location",
    "pragma",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "set-cookie2",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-artifact-source",
    "x-content-type-options",
    "x-request-id",
];
/// The content codings that are registered with IANA, but for `identity`.
const CODINGS: &[&str] = &[
    "aes128gcm",
    "br",
    "compress",
    "dcb",
    "dcz",
    "deflate",
    "exi",
    "gzip",
    "pack200-gzip",
    "x-compress",
    "x-gzip",
    "zstd",
];

/// Fields that a package type adds to those that all know.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// What its clients and mirrors read of content.
    pub kept: &'static [&'static str],
    /// What they read, by how names begin.
    pub families: &'static [&'static str],
    /// What this proxy says in upstream's place.
    pub never: &'static [&'static str],
}

impl Names {
    /// No field.
    pub const NONE: Names = Names {
        kept: &[],
        families: &[],
        never: &[],
    };

    fn describe(&self, name: &str) -> bool {
        self.kept.contains(&name) || self.families.iter().any(|family| name.starts_with(family))
    }
}

/// What all know.
const COMMON: Names = Names {
    kept: KEPT,
    families: KEPT_FAMILIES,
    never: NEVER,
};

/// Which fields are kept for a remote.
#[derive(Debug, Clone, Copy)]
pub struct Keep<'a> {
    /// What the package types add, all of them for every remote: a registry may be asked through a remote of another type.
    pub known: &'a [Names],
    /// What the remote wants kept (`headers_keep`).
    pub listed: &'a [HeaderName],
}

impl Keep<'_> {
    fn has(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        let described = COMMON.describe(text) || self.known.iter().any(|names| names.describe(text));
        (described || self.listed.contains(name)) && may_be_kept(name, self.known)
    }
}

/// Whether a remote may keep a field of this name (`headers_keep`), where package types add `known`.
pub fn may_be_kept(name: &HeaderName, known: &[Names]) -> bool {
    let mut all = known.iter().chain([&COMMON]);
    all.all(|names| !names.never.contains(&name.as_str()))
}

/// Names that `Connection` makes hop-by-hop.
fn nominated(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect()
}

/// Those of `headers` that describe the content, and those that the remote wants kept besides.
pub fn kept(headers: &HeaderMap, keep: Keep<'_>) -> HeaderMap {
    let connection = nominated(headers);
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if keep.has(name) && !connection.iter().any(|nominated| nominated == name.as_str()) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// What was asked for, as far as it tells what upstream's header means.
pub struct Asked<'a> {
    /// The path as it was asked for; may have a query.
    pub path: &'a str,
    /// Where the answer came from, after redirects.
    pub url: &'a Url,
    /// A document, asked for in a coding: its name says nothing of it (a package may be called `tar.gz`).
    pub document: bool,
    pub keep: Keep<'a>,
}

/// The headers to store with a 200, and its length.
pub fn of_stored(response: &ResponseHeader, asked: &Asked<'_>) -> (HeaderMap, Option<u64>) {
    let mut kept = kept(&response.headers, asked.keep);
    let coding = coding(&response.headers, asked);
    match coding.is_empty() {
        true => kept.remove(header::CONTENT_ENCODING),
        false => kept.insert(header::CONTENT_ENCODING, value(&coding)),
    };
    let length = response
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok());
    // No body is that long, and the largest number of all means "not known yet" elsewhere.
    let length = length.filter(|length: &u64| *length < u64::MAX / 2);
    (kept, length)
}

/// The headers to pass on with an answer that is not stored.
pub fn of_answer(response: &ResponseHeader, keep: Keep<'_>) -> HeaderMap {
    let mut kept = kept(&response.headers, keep);
    kept.remove(header::ETAG);
    kept.remove(header::LAST_MODIFIED);
    if let Some(value) = response.headers.get(header::RETRY_AFTER) {
        kept.insert(header::RETRY_AFTER, value.clone());
    }
    kept
}

/// Those of an error's headers that say how much more may be asked; the others are about a body that nobody gets.
pub fn limits(kept: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    kept.iter().filter(|(name, _)| name.as_str().contains("ratelimit"))
}

/// The codings that a `Content-Encoding` names, in their order. What is none (`aws-chunked`, `bzip2`, a character set) says
/// nothing of the bytes.
pub fn codings(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|token| CODINGS.iter().any(|coding| coding.eq_ignore_ascii_case(token)))
}

/// Whether upstream's `headers` name a coding.
pub fn is_coded(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONTENT_ENCODING);
    values
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| codings(value).next().is_some()))
}

/// The coding that kept `headers` name; where there are several, all that is said of them.
pub fn known_coding(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get(header::CONTENT_ENCODING)?.to_str().ok()?.trim();
    let mut known = codings(all);
    match (known.next(), known.next()) {
        (Some(_), Some(_)) => Some(all),
        (only, _) => only,
    }
}

/// The codings that content is in. Many a server names as coding what is the file's own format (`.tar.gz`): its bytes pass
/// untouched.
fn coding(headers: &HeaderMap, asked: &Asked<'_>) -> String {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings: Vec<&str> = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(codings)
        .collect();
    if !asked.document
        && let Some(first) = codings.first()
        && is_format(first, headers, asked)
    {
        codings.remove(0);
    }
    codings.join(", ")
}

fn is_format(coding: &str, headers: &HeaderMap, asked: &Asked<'_>) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let path = asked.path.split('?').next().unwrap_or_default();
    let names = path.split('/').chain(asked.url.path().rsplit('/').next());
    let named = names.chain(text(header::CONTENT_DISPOSITION).and_then(file_name));
    let formats = named.filter_map(format_of_name);
    let mut formats = formats.chain(text(header::CONTENT_TYPE).and_then(format_of_type));
    let coding = coding.to_ascii_lowercase();
    let coding = coding.strip_prefix("x-").unwrap_or(&coding);
    // Of any packed file, gzip is what servers say by mistake.
    formats.any(|format| format == coding || coding == "gzip")
}

/// The file name of a `Content-Disposition`.
fn file_name(disposition: &str) -> Option<&str> {
    disposition.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let name = name.trim();
        let is_name = name.eq_ignore_ascii_case("filename") || name.eq_ignore_ascii_case("filename*");
        is_name.then(|| value.trim().trim_matches('"'))
    })
}

/// How a file of this name is packed: the name of the coding, if there is one.
fn format_of_name(name: &str) -> Option<&'static str> {
    let (_, extension) = name.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "gz" | "tgz" | "taz" | "apk" | "crate" | "svgz" => "gzip",
        "zst" | "tzst" | "zstd" => "zstd",
        "br" => "br",
        "z" => "compress",
        "exi" => "exi",
        "xz" | "txz" | "bz2" | "tbz" | "tbz2" | "zip" | "whl" | "jar" | "rpm" | "deb" | "7z" => "",
        _ => return None,
    })
}

/// The format that a media type names: `application/gzip`, `application/vnd.oci.image.layer.v1.tar+zstd`.
fn format_of_type(content_type: &str) -> Option<&'static str> {
    let media_type = content_type.split(';').next()?.trim().to_ascii_lowercase();
    let subtype = media_type.split_once('/')?.1;
    Some(match subtype.rsplit(['.', '+', '-']).next()? {
        "gzip" | "tgz" => "gzip",
        "zstd" => "zstd",
        "compress" => "compress",
        "exi" => "exi",
        "xz" | "bzip" | "bzip2" | "zip" | "rpm" => "",
        _ if subtype.contains("compressed") => "gzip",
        _ => return None,
    })
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

/// [`retry_after`], from headers that were kept.
pub fn retry_after_of(headers: &HeaderMap) -> Option<String> {
    headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

/// For views: what describes the original's bytes does not survive a rewriting (RFC 9110 section 8).
pub fn of_view(original: &HeaderMap) -> HeaderMap {
    let of_bytes = |name: &str| {
        matches!(
            name,
            "etag"
                | "content-encoding"
                | "content-md5"
                | "content-digest"
                | "repr-digest"
                | "digest"
                | "want-digest"
                | "accept-ranges"
                | "x-goog-hash"
                | "x-linked-etag"
                | "x-linked-size"
        ) || name.starts_with("x-amz-checksum-")
            || name.starts_with("x-checksum-")
    };
    let mut kept = HeaderMap::with_capacity(original.len());
    for (name, value) in original {
        if !of_bytes(name.as_str()) {
            kept.append(name.clone(), value.clone());
        }
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

    fn response(fields: &[(&'static str, &str)]) -> ResponseHeader {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in fields {
            response.append_header(*name, *value).unwrap();
        }
        response
    }

    fn known() -> Vec<Names> {
        crate::formats::packages()
            .iter()
            .map(|package| package.headers)
            .collect()
    }

    fn stored(response: &ResponseHeader, path: &str, url: &str) -> (HeaderMap, Option<u64>) {
        let url = Url::parse(url).unwrap();
        let asked = Asked {
            path,
            url: &url,
            document: false,
            keep: Keep {
                known: &known(),
                listed: &[HeaderName::from_static("x-wanted")],
            },
        };
        of_stored(response, &asked)
    }

    #[test]
    fn what_describes_the_content_is_kept_and_nothing_else() {
        let kept = [
            "content-type",
            "content-disposition",
            "etag",
            "last-modified",
            "link",
            "digest",
            "repr-digest",
            "content-digest",
            "x-checksum-sha256",
            "x-goog-hash",
            "x-amz-meta-a",
            "x-amz-checksum-sha256",
            "npm-notice",
            "docker-content-digest",
            "oci-subject",
            "x-linked-size",
            "x-repo-commit",
            "x-pypi-last-serial",
            "ratelimit-limit",
            "ratelimit-policy",
            "x-wanted",
        ];
        let dropped = [
            "x-hop",
            "set-cookie",
            "access-control-allow-origin",
            "strict-transport-security",
            "cache-control",
            "content-security-policy",
            "x-accel-redirect",
            "x-accel-buffering",
            "x-sendfile",
            "x-lighttpd-send-file",
            "x-reproxy-url",
            "status",
            "service-worker-allowed",
            "speculation-rules",
            "accept-ch",
            "some-cdn-cache-control",
            "x-forwarded-host",
            "x-unheard-of",
        ];
        let mut fields: Vec<(&'static str, &str)> = vec![("connection", "keep-alive, X-Hop"), ("content-length", "5")];
        fields.extend(kept.iter().chain(&dropped).map(|name| (*name, "1")));
        let (got, length) = stored(&response(&fields), "/a/b.txt", "https://a.test/a/b.txt");
        let mut names: Vec<&str> = got.keys().map(HeaderName::as_str).collect();
        let mut wanted = kept.to_vec();
        names.sort_unstable();
        wanted.sort_unstable();
        assert_eq!((names, length), (wanted, Some(5)));
    }

    #[test]
    fn a_connection_option_is_not_content_whatever_its_name() {
        let response = response(&[("connection", "etag"), ("etag", "\"1\"")]);
        assert!(stored(&response, "/x", "https://a.test/x").0.is_empty());
    }

    /// The coding of a file that upstream says is in `said`.
    fn of(said: &str, path: &str, url: &str, more: &[(&'static str, &str)]) -> Option<String> {
        let mut fields = vec![("content-encoding", said)];
        fields.extend(more);
        let kept = stored(&response(&fields), path, url).0;
        kept.get("content-encoding")
            .map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn what_is_no_coding_is_dropped() {
        let of = |said| of(said, "/x", "https://a.test/x", &[]);
        for said in ["bzip2", "aws-chunked", "identity", "utf-8", "binary", "", "none, xz"] {
            assert_eq!(of(said), None, "{said}");
        }
        assert_eq!(of("gzip,aws-chunked").as_deref(), Some("gzip"));
        assert_eq!(of("br, GZIP").as_deref(), Some("br, GZIP"));
    }

    #[test]
    fn a_files_own_format_is_no_coding() {
        let at = |path| of("gzip", path, "https://a.test/x", &[]);
        for path in [
            "/x/APKINDEX.tar.gz",
            "/x/app.tgz?token=1",
            "/files/app.tar.gz/download",
            "/a.whl",
            "/B.TAR.GZ",
        ] {
            assert_eq!(at(path), None, "{path}");
        }
        assert_eq!(at("/x/index.json").as_deref(), Some("gzip"));
        assert_eq!(at("/get?f=a.gz").as_deref(), Some("gzip"));
        assert_eq!(of("gzip", "/latest", "https://a.test/app.tar.gz?s=1", &[]), None);
        assert_eq!(of("x-gzip", "/latest", "https://a.test/app.tgz", &[]), None);
        assert_eq!(of("zstd", "/a.zst", "https://a.test/a", &[]), None);
        assert_eq!(of("zstd", "/a.gz", "https://a.test/a", &[]).as_deref(), Some("zstd"));
        let with = |name, text: &str| of("gzip", "/latest", "https://a.test/x", &[(name, text)]);
        for disposition in [
            "attachment; filename=\"a.tar.gz\"",
            "attachment; FileName = a.tgz",
            "attachment; filename*=UTF-8''a.tar.gz",
        ] {
            assert_eq!(with("content-disposition", disposition), None, "{disposition}");
        }
        for media_type in [
            "application/gzip",
            "application/x-gzip; a=b",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/x-compressed-tar",
        ] {
            assert_eq!(with("content-type", media_type), None, "{media_type}");
        }
        assert_eq!(with("content-type", "text/plain").as_deref(), Some("gzip"));
    }

    #[test]
    fn a_documents_name_says_nothing_of_its_coding() {
        let url = Url::parse("https://a.test/tar.gz").unwrap();
        let asked = Asked {
            path: "/tar.gz",
            url: &url,
            document: true,
            keep: Keep {
                known: &known(),
                listed: &[],
            },
        };
        let (kept, _) = of_stored(&response(&[("content-encoding", "gzip")]), &asked);
        assert!(kept.contains_key("content-encoding"));
    }
}
