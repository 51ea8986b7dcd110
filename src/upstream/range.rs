//! Ranges that are asked of upstream.

use crate::fields;

/// Whether `Content-Range: bytes a-b/len` is what `Range: bytes=…` asked for. Several ranges are not asked upstream.
pub(super) fn range_matches(asked: &str, got: &str) -> bool {
    let Some(asked) = asked.strip_prefix("bytes=") else {
        return false;
    };
    let Some((got, length)) = got.strip_prefix("bytes ").and_then(|got| got.split_once('/')) else {
        return false;
    };
    let Some((got_start, got_end)) = got.split_once('-') else {
        return false;
    };
    let number = fields::number::<u64>;
    let (Some(got_start), Some(got_end)) = (number(got_start.trim()), number(got_end.trim())) else {
        return false;
    };
    let length = number(length.trim());
    match asked.split_once('-') {
        Some(("", suffix)) => match (number(suffix), length) {
            (Some(suffix), Some(length)) => {
                got_start == length.saturating_sub(suffix) && got_end.saturating_add(1) == length
            }
            _ => false,
        },
        Some((start, end)) => {
            number(start) == Some(got_start)
                && match number(end) {
                    Some(end) => {
                        got_end <= end
                            && (got_end == end || length.is_some_and(|length| got_end.saturating_add(1) == length))
                    }
                    None => end.is_empty() && length.is_none_or(|length| got_end.saturating_add(1) == length),
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
