//! What Pingora lets through and must not: ambiguous framing (RFC 9112 sections 2.2, 3, 5 and 6.3).

use http::{Version, header};
use pingora_proxy::Session;

/// Refuses a request that two readers could understand differently.
///
/// # Errors
/// The reason, for the client.
pub fn check(session: &Session) -> Result<(), &'static str> {
    let request = session.req_header();
    if request.version == Version::HTTP_2 {
        return Ok(());
    }
    check_head(&session.as_downstream().to_h1_raw())?;
    if request.version == Version::HTTP_11 && !request.headers.contains_key(header::HOST) {
        return Err("an HTTP/1.1 request needs a Host header");
    }
    Ok(())
}

/// Looks at a request's head as it was received.
pub(super) fn check_head(raw: &[u8]) -> Result<(), &'static str> {
    let end = raw
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map_or(raw.len(), |at| at + 2);
    let head = &raw[..end];
    let mut previous = 0;
    for byte in head {
        if *byte == b'\n' && previous != b'\r' {
            return Err("a line of the request's head ends in a bare LF");
        }
        if previous == b'\r' && *byte != b'\n' {
            return Err("a line of the request's head has a bare CR");
        }
        if *byte == 0 {
            return Err("the request's head has a NUL byte");
        }
        previous = *byte;
    }
    let mut lines = head
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request_line = lines.next().unwrap_or(&[]);
    if request_line.iter().filter(|byte| **byte == b' ').count() != 2 {
        return Err("the request line is not `method target version`");
    }
    let (mut lengths, mut encodings, mut hosts) = (0, 0, 0);
    for line in lines {
        let name = line.split(|byte| *byte == b':').next().unwrap_or(&[]);
        if name.eq_ignore_ascii_case(b"content-length") {
            lengths += 1;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            encodings += 1;
        } else if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        }
    }
    if hosts > 1 {
        return Err("the request has more than one Host header");
    }
    if lengths > 1 {
        return Err("the request has more than one Content-Length");
    }
    if lengths > 0 && encodings > 0 {
        return Err("the request has both Content-Length and Transfer-Encoding");
    }
    if encodings > 1 {
        return Err("the request has more than one Transfer-Encoding");
    }
    Ok(())
}

/// A target in origin form: of the absolute form (RFC 9112 section 3.2.2) what follows the authority.
pub fn origin_form(target: &[u8]) -> &[u8] {
    let rest = match (strip(target, b"http://"), strip(target, b"https://")) {
        (Some(rest), _) | (_, Some(rest)) => rest,
        _ => return target,
    };
    match rest.iter().position(|byte| *byte == b'/') {
        Some(at) => &rest[at..],
        None => b"/",
    }
}

fn strip<'a>(target: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = target.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ambiguous_framing_is_refused() {
        let ok = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
        assert_eq!(check_head(ok), Ok(()));
        for bad in [
            &b"GET /a HTTP/1.1\nHost: h\r\n\r\n"[..],
            b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
            b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST /a HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n",
            b"GET /a HTTP/1.1\r\nX: a\rb\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        ] {
            assert!(check_head(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn absolute_form() {
        assert_eq!(origin_form(b"http://h:1/a?b"), b"/a?b");
        assert_eq!(origin_form(b"HTTP://h"), b"/");
        assert_eq!(origin_form(b"/a"), b"/a");
    }

    proptest! {
        #[test]
        fn nothing_panics(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check_head(&raw);
            let _ = origin_form(&raw);
        }
    }
}
