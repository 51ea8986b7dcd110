//! Ranges and conditions of a request (RFC 9110 sections 13 and 14), against what is served.

use std::time::SystemTime;

use http::{HeaderMap, header};

/// Ranges in one request: more, or ranges that add up to more than the whole, are answered with the whole
/// (RFC 9110 section 14.2 allows that, and asking for it is how servers are worn out).
const MAX_RANGES: usize = 512;

/// What `Range` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// The whole: none asked for, none understood, or too many.
    Whole,
    /// Nothing of it exists: 416.
    Unsatisfiable,
    /// Start and exclusive end.
    One(u64, u64),
    Several(Vec<(u64, u64)>),
}

/// Reads a `Range` value for a representation of `length` bytes.
pub fn parse(value: &str, length: u64) -> Ranges {
    let Some((unit, set)) = value.split_once('=') else {
        return Ranges::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ranges::Whole;
    }
    let mut ranges = Vec::new();
    let mut asked = 0;
    for spec in set.split(',') {
        let spec = spec.trim();
        if spec.is_empty() {
            continue;
        }
        asked += 1;
        if asked > MAX_RANGES {
            return Ranges::Whole;
        }
        let Some((first, last)) = spec.split_once('-') else {
            return Ranges::Whole;
        };
        let (first, last) = (first.trim(), last.trim());
        let range = if first.is_empty() {
            let Some(suffix) = digits(last) else {
                return Ranges::Whole;
            };
            (length.saturating_sub(suffix), length)
        } else {
            let Some(first) = digits(first) else {
                return Ranges::Whole;
            };
            let last = if last.is_empty() { Some(u64::MAX) } else { digits(last) };
            let Some(last) = last.filter(|last| *last >= first) else {
                return Ranges::Whole;
            };
            (first, last.saturating_add(1).min(length))
        };
        if range.0 < range.1 {
            ranges.push(range);
        }
    }
    if asked == 0 {
        return Ranges::Whole;
    }
    match ranges.as_slice() {
        [] => Ranges::Unsatisfiable,
        [(start, end)] => Ranges::One(*start, *end),
        several => {
            let sum = several
                .iter()
                .fold(0u64, |sum, (start, end)| sum.saturating_add(end - start));
            if sum > length {
                Ranges::Whole
            } else {
                Ranges::Several(ranges)
            }
        }
    }
}

/// A number too large for us is as large as can be.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// The start of a single range that names one (`bytes=N-…`), before the length is known.
pub fn single_start(value: &str) -> Option<u64> {
    let set = value.trim().strip_prefix("bytes=")?;
    if set.contains(',') {
        return None;
    }
    let (first, _) = set.split_once('-')?;
    digits(first.trim())
}

/// What the validators of a request make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Pass,
    NotModified,
    Failed,
}

/// RFC 9110 section 13.2.2, for GET and HEAD.
pub fn evaluate(request: &HeaderMap, etag: Option<&str>, last_modified: Option<&str>) -> Condition {
    let modified = last_modified.and_then(|date| httpdate::parse_http_date(date).ok());
    if request.contains_key(header::IF_MATCH) {
        if !matches_etag(request, header::IF_MATCH, etag, true) {
            return Condition::Failed;
        }
    } else if let (Some(since), Some(modified)) = (date(request, header::IF_UNMODIFIED_SINCE), modified)
        && modified > since
    {
        return Condition::Failed;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        if matches_etag(request, header::IF_NONE_MATCH, etag, false) {
            return Condition::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (date(request, header::IF_MODIFIED_SINCE), modified)
        && modified <= since
    {
        return Condition::NotModified;
    }
    Condition::Pass
}

/// Whether the validators of a request allow to replace or remove what there is (RFC 9110 section 13.2.2); `found` are the
/// validators of that, `None` if there is nothing.
pub fn may_change(request: &HeaderMap, found: Option<(&str, Option<&str>)>) -> bool {
    let etag = found.map(|(etag, _)| etag);
    if request.contains_key(header::IF_MATCH) {
        if found.is_none() || !matches_etag(request, header::IF_MATCH, etag, true) {
            return false;
        }
    } else if let Some(since) = date(request, header::IF_UNMODIFIED_SINCE) {
        let modified = found.and_then(|(_, modified)| httpdate::parse_http_date(modified?).ok());
        if modified.is_none_or(|modified| modified > since) {
            return false;
        }
    }
    found.is_none()
        || !request.contains_key(header::IF_NONE_MATCH)
        || !matches_etag(request, header::IF_NONE_MATCH, etag, false)
}

/// Whether `Range` counts: no `If-Range`, or one that names what is served by a strong validator (section 13.1.5).
pub fn if_range_holds(request: &HeaderMap, etag: Option<&str>, last_modified: Option<&str>) -> bool {
    let Some(value) = request.get(header::IF_RANGE) else {
        return true;
    };
    let Ok(value) = value.to_str() else { return false };
    let value = value.trim();
    if value.starts_with('"') || value.starts_with("W/") {
        return etag.is_some_and(|etag| !etag.starts_with("W/") && etag == value);
    }
    last_modified.is_some_and(|modified| modified.trim() == value)
}

fn date(request: &HeaderMap, name: header::HeaderName) -> Option<SystemTime> {
    request
        .get(name)
        .and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok())
}

fn matches_etag(request: &HeaderMap, name: header::HeaderName, etag: Option<&str>, strong: bool) -> bool {
    let values = request.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut any = false;
    for value in values {
        if value.trim() == "*" {
            return true;
        }
        any = any || tags(value).any(|tag| etag.is_some_and(|etag| same_tag(tag, etag, strong)));
    }
    any
}

/// The entity tags of a list; a comma inside quotes separates nothing.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return None;
        }
        let open = if rest.starts_with("W/\"") { 2 } else { 0 };
        let end = match rest[open..].strip_prefix('"') {
            Some(inner) => inner.find('"').map_or(rest.len(), |close| open + close + 2),
            None => rest.find(',').unwrap_or(rest.len()),
        };
        let (tag, after) = rest.split_at(end);
        rest = after;
        Some(tag.trim())
    })
}

fn same_tag(a: &str, b: &str, strong: bool) -> bool {
    if strong {
        return a == b && !a.starts_with("W/");
    }
    a.strip_prefix("W/").unwrap_or(a) == b.strip_prefix("W/").unwrap_or(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_may_be_changed() {
        let date = "Tue, 14 Nov 2023 22:13:20 GMT";
        let may = |name: header::HeaderName, value: &str, found: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            may_change(&headers, found.map(|etag| (etag, Some(date))))
        };
        for (name, value, nothing, something) in [
            (header::IF_NONE_MATCH, "*", true, false),
            (header::IF_NONE_MATCH, "\"a\"", true, false),
            (header::IF_NONE_MATCH, "W/\"a\"", true, false),
            (header::IF_NONE_MATCH, "\"b\"", true, true),
            (header::IF_MATCH, "*", false, true),
            (header::IF_MATCH, "\"b\", \"a\"", false, true),
            (header::IF_MATCH, "W/\"a\"", false, false),
            (header::IF_MATCH, "\"b\"", false, false),
            (header::IF_UNMODIFIED_SINCE, date, false, true),
            (
                header::IF_UNMODIFIED_SINCE,
                "Tue, 14 Nov 2023 22:13:19 GMT",
                false,
                false,
            ),
            (header::IF_MODIFIED_SINCE, date, true, true),
        ] {
            assert_eq!(may(name.clone(), value, None), nothing, "{name}: {value}");
            assert_eq!(may(name.clone(), value, Some("\"a\"")), something, "{name}: {value}");
        }
    }

    #[test]
    fn single_ranges() {
        assert_eq!(parse("bytes=0-9", 100), Ranges::One(0, 10));
        assert_eq!(parse("bytes=90-", 100), Ranges::One(90, 100));
        assert_eq!(parse("bytes=-5", 100), Ranges::One(95, 100));
        assert_eq!(parse("bytes=-500", 100), Ranges::One(0, 100));
        assert_eq!(parse("bytes=99-5000", 100), Ranges::One(99, 100));
        assert_eq!(parse("Bytes=0-0", 100), Ranges::One(0, 1));
        assert_eq!(parse("bytes=0-99999999999999999999999", 100), Ranges::One(0, 100));
    }

    #[test]
    fn what_cannot_be_satisfied_and_what_is_not_understood() {
        for value in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(parse(value, 100), Ranges::Unsatisfiable, "{value}");
        }
        assert_eq!(parse("bytes=-5", 0), Ranges::Unsatisfiable);
        for value in [
            "bytes=5-1",
            "items=0-1",
            "bytes",
            "bytes=",
            "bytes=a-b",
            "bytes=1",
            "bytes=--1",
            "bytes=+1-2",
        ] {
            assert_eq!(parse(value, 100), Ranges::Whole, "{value}");
        }
    }

    #[test]
    fn several_ranges() {
        assert_eq!(parse("bytes=0-0, -1", 100), Ranges::Several(vec![(0, 1), (99, 100)]));
        assert_eq!(parse("bytes=0-0,500-", 100), Ranges::One(0, 1));
        assert_eq!(parse("bytes=0-99,0-99", 100), Ranges::Whole);
        let many = (0..600).map(|i| format!("{i}-{i}")).collect::<Vec<_>>().join(",");
        assert_eq!(parse(&format!("bytes={many}"), 100_000), Ranges::Whole);
    }

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn conditions() {
        let day = "Wed, 01 Jan 2025 00:00:00 GMT";
        let date = Some(day);
        let inm = |value| evaluate(&headers(&[(header::IF_NONE_MATCH, value)]), Some("\"a\""), date);
        assert_eq!(inm("\"a\""), Condition::NotModified);
        assert_eq!(inm("W/\"a\""), Condition::NotModified);
        assert_eq!(inm("\"x,y\", \"a\""), Condition::NotModified);
        assert_eq!(inm("*"), Condition::NotModified);
        assert_eq!(inm("\"b\""), Condition::Pass);
        // If-None-Match goes before If-Modified-Since.
        let both = headers(&[(header::IF_NONE_MATCH, "\"b\""), (header::IF_MODIFIED_SINCE, day)]);
        assert_eq!(evaluate(&both, Some("\"a\""), date), Condition::Pass);
        let ims = headers(&[(header::IF_MODIFIED_SINCE, day)]);
        assert_eq!(evaluate(&ims, None, date), Condition::NotModified);
        assert_eq!(evaluate(&ims, None, None), Condition::Pass);
        let im = |value| evaluate(&headers(&[(header::IF_MATCH, value)]), Some("\"a\""), date);
        assert_eq!(im("\"a\""), Condition::Pass);
        assert_eq!(im("W/\"a\""), Condition::Failed);
        assert_eq!(im("\"b\""), Condition::Failed);
        assert_eq!(im("*"), Condition::Pass);
        let unmodified = headers(&[(header::IF_UNMODIFIED_SINCE, "Tue, 31 Dec 2024 00:00:00 GMT")]);
        assert_eq!(evaluate(&unmodified, None, date), Condition::Failed);
    }

    #[test]
    fn if_range_is_strong() {
        let with = |value: &str, etag| {
            if_range_holds(
                &headers(&[(header::IF_RANGE, value)]),
                Some(etag),
                Some("Wed, 01 Jan 2025 00:00:00 GMT"),
            )
        };
        assert!(with("\"a\"", "\"a\""));
        assert!(!with("W/\"a\"", "W/\"a\""));
        assert!(!with("\"b\"", "\"a\""));
        assert!(with("Wed, 01 Jan 2025 00:00:00 GMT", "\"a\""));
        assert!(!with("Wed, 01 Jan 2025 00:00:01 GMT", "\"a\""));
        assert!(if_range_holds(&HeaderMap::new(), None, None));
    }

    proptest! {
        #[test]
        fn ranges_are_always_inside(value in "bytes=[0-9,\\- ]{0,40}", length in 0u64..2000) {
            let inside = |start: u64, end: u64| start < end && end <= length;
            match parse(&value, length) {
                Ranges::One(start, end) => prop_assert!(inside(start, end)),
                Ranges::Several(ranges) => for (start, end) in ranges { prop_assert!(inside(start, end)); },
                Ranges::Whole | Ranges::Unsatisfiable => {}
            }
        }

        #[test]
        fn no_header_panics(value in ".{0,60}") {
            let _ = parse(&value, 10);
            let _ = tags(&value).count();
            let _ = single_start(&value);
        }
    }
}
