//! A request's path below a remote: decoded, normalised and checked once, before anything else sees it.

use super::ArtifactPath;

/// Why a path is refused with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path has a `%` that begins no percent-encoding")]
    Percent,
    #[error("the path has a NUL byte")]
    Nul,
    #[error("the path has a backslash")]
    Backslash,
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    #[error("the query has a character that must be percent-encoded")]
    Query,
}

/// RFC 3986 section 3.3: what may stand unencoded in a path, beside the unreserved characters.
const ALLOWED: &[u8] = b"!$&'()*+,;=:@";

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Reads the path that follows `{remote}/` (or a host-bound remote's whole path), as received.
///
/// The encoded result is in the normal form of RFC 3986 section 6.2.2: what need not be encoded is not, what must be is
/// in upper case, and reserved characters stay as they came (`+` and `%2B` mean different things to some servers). The
/// decoded one is what patterns see: decoded once, with `%2F` left as it is. Empty segments collapse; a final slash stays.
///
/// # Errors
/// Anything that could mean one thing here and another upstream.
pub fn parse(raw: &[u8], query: Option<&str>) -> Result<ArtifactPath, PathError> {
    // Verbatim upstream and in the key, so it must be what RFC 3986 calls a query, or nearly.
    if query.is_some_and(|query| !query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')) {
        return Err(PathError::Query);
    }
    let mut encoded = String::with_capacity(raw.len());
    let mut decoded: Vec<u8> = Vec::with_capacity(raw.len());
    let mut segments = raw.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() {
            continue;
        }
        let start = decoded.len();
        let mut bytes = segment.iter().copied();
        while let Some(byte) = bytes.next() {
            let (byte, was_encoded) = match byte {
                b'%' => match (bytes.next().and_then(nibble), bytes.next().and_then(nibble)) {
                    (Some(high), Some(low)) => (high << 4 | low, true),
                    _ => return Err(PathError::Percent),
                },
                byte => (byte, false),
            };
            match byte {
                0 => return Err(PathError::Nul),
                b'\\' => return Err(PathError::Backslash),
                b'/' => decoded.extend_from_slice(b"%2F"),
                byte => decoded.push(byte),
            }
            if is_unreserved(byte) || (!was_encoded && ALLOWED.contains(&byte)) {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        // `%2F` separates too, to whom it is decoded upstream.
        let segment = String::from_utf8_lossy(&decoded[start..]);
        if segment.split("%2F").any(|part| part == "." || part == "..") {
            return Err(PathError::DotSegment);
        }
        if segments.peek().is_some() {
            decoded.push(b'/');
            encoded.push('/');
        }
    }
    Ok(ArtifactPath {
        decoded: String::from_utf8_lossy(&decoded).into_owned(),
        encoded,
        query: query.map(str::to_owned),
    })
}

/// The path whose decoded form is `decoded`, as [`parse`] makes it of a request: for paths that documents name.
///
/// # Errors
/// Those of [`parse`].
pub fn of_decoded(decoded: &str) -> Result<ArtifactPath, PathError> {
    let mut raw = String::with_capacity(decoded.len());
    let mut rest = decoded.as_bytes();
    while let [byte, after @ ..] = rest {
        if rest.starts_with(b"%2F") {
            raw.push_str("%2F");
            rest = &rest[3..];
            continue;
        }
        if is_unreserved(*byte) || *byte == b'/' || ALLOWED.contains(byte) {
            raw.push(char::from(*byte));
        } else {
            raw.push_str(&format!("%{byte:02X}"));
        }
        rest = after;
    }
    parse(raw.as_bytes(), None)
}

fn nibble(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ok(raw: &str) -> (String, String) {
        let path = parse(raw.as_bytes(), None).unwrap();
        (path.decoded, path.encoded)
    }

    #[test]
    fn legitimate_spellings_arrive_as_they_must() {
        assert_eq!(ok("a/b.txt"), ("a/b.txt".into(), "a/b.txt".into()));
        assert_eq!(ok("@scope%2fname"), ("@scope%2Fname".into(), "@scope%2Fname".into()));
        assert_eq!(ok("a%20b"), ("a b".into(), "a%20b".into()));
        assert_eq!(ok("g++-1%2B2~rc"), ("g++-1+2~rc".into(), "g++-1%2B2~rc".into()));
        assert_eq!(ok("%7Euser/%41"), ("~user/A".into(), "~user/A".into()));
        assert_eq!(ok("a//b///c/"), ("a/b/c/".into(), "a/b/c/".into()));
        assert_eq!(ok("//a"), ("a".into(), "a".into()));
        assert_eq!(ok("100%25"), ("100%".into(), "100%25".into()));
        assert_eq!(ok("caf%c3%a9"), ("café".into(), "caf%C3%A9".into()));
        assert_eq!(ok(""), (String::new(), String::new()));
    }

    #[test]
    fn tricks_are_refused() {
        for raw in [
            "..",
            "a/../b",
            "%2e%2e/x",
            ".%2e/x",
            "%2E/x",
            "a/.",
            "a%2f..%2fb",
            "..%2fetc",
            "a/..%2F",
            "x%2f%2e",
        ] {
            assert_eq!(parse(raw.as_bytes(), None), Err(PathError::DotSegment), "{raw}");
        }
        assert_eq!(parse(b"a%00b", None), Err(PathError::Nul));
        assert_eq!(parse(b"a\\b", None), Err(PathError::Backslash));
        assert_eq!(parse(b"a%5cb", None), Err(PathError::Backslash));
        for raw in ["%", "%2", "%zz", "a%4"] {
            assert_eq!(parse(raw.as_bytes(), None), Err(PathError::Percent), "{raw}");
        }
        // Decoded once: what is left is a literal percent sign, not another encoding.
        assert_eq!(ok("%252e%252e"), ("%2e%2e".into(), "%252e%252e".into()));
    }

    proptest! {
        #[test]
        fn the_encoded_form_is_stable_and_safe(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(path) = parse(&raw, None) {
                let again = parse(path.encoded.as_bytes(), None).unwrap();
                prop_assert_eq!(&again, &path);
                prop_assert!(path.encoded.is_ascii());
                prop_assert!(!path.encoded.contains("//"));
                prop_assert!(!path.encoded.starts_with('/'));
                prop_assert!(!path.encoded.bytes().any(|b| b <= b' ' || b == b'\\' || b == b'?' || b == b'#'));
                prop_assert!(!path.decoded.split(['/']).any(|s| s == "." || s == ".."));
            }
        }

        #[test]
        fn a_decoded_path_finds_its_way_back(raw in "[ -~é]{0,30}") {
            if let Ok(path) = of_decoded(&raw) {
                let again = of_decoded(&path.decoded).unwrap();
                prop_assert_eq!(again, path);
            }
        }

        #[test]
        fn percent_encoding_every_byte_changes_nothing_but_reserved_ones(raw in "[a-zA-Z0-9._~ -]{1,20}") {
            let encoded: String = raw.bytes().map(|b| format!("%{b:02x}")).collect();
            let plain = raw.replace(' ', "%20");
            prop_assert_eq!(parse(encoded.as_bytes(), None), parse(plain.as_bytes(), None));
        }
    }
}
