//! Ranges that are asked of upstream.

/// Whether `Content-Range: bytes a-b/len` is what `Range: bytes=…` asked for. Several ranges are not asked upstream.
pub fn range_matches(asked: &str, got: &str) -> bool {
    let Some(asked) = asked.strip_prefix("bytes=") else {
        return false;
    };
    let Some((got, length)) = got.strip_prefix("bytes ").and_then(|got| got.split_once('/')) else {
        return false;
    };
    let Some((got_start, got_end)) = got.split_once('-') else {
        return false;
    };
    let (Ok(got_start), Ok(got_end)) = (got_start.trim().parse::<u64>(), got_end.trim().parse::<u64>()) else {
        return false;
    };
    let length = length.trim().parse::<u64>().ok();
    match asked.split_once('-') {
        Some(("", suffix)) => match (suffix.parse::<u64>(), length) {
            (Ok(suffix), Some(length)) => {
                got_start == length.saturating_sub(suffix) && got_end.saturating_add(1) == length
            }
            _ => false,
        },
        Some((start, end)) => {
            start.parse() == Ok(got_start)
                && match end.parse::<u64>() {
                    Ok(end) => {
                        got_end <= end
                            && (got_end == end || length.is_some_and(|length| got_end.saturating_add(1) == length))
                    }
                    Err(_) => end.is_empty() && length.is_none_or(|length| got_end.saturating_add(1) == length),
                }
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::range_matches;

    #[test]
    fn an_answered_range_must_be_the_asked_one() {
        assert!(range_matches("bytes=0-9", "bytes 0-9/100"));
        assert!(range_matches("bytes=90-199", "bytes 90-99/100"));
        assert!(range_matches("bytes=90-", "bytes 90-99/100"));
        assert!(range_matches("bytes=-5", "bytes 95-99/100"));
        assert!(range_matches("bytes=-500", "bytes 0-99/100"));
        assert!(!range_matches("bytes=0-9", "bytes 1-9/100"));
        assert!(!range_matches("bytes=0-9", "bytes 0-8/100"));
        assert!(!range_matches("bytes=0-9", "bytes */100"));
        assert!(!range_matches("bytes=0-9", ""));
        assert!(!range_matches("bytes=90-", "bytes 90-98/100"));
    }
}
