//! Content negotiation by `Accept` (RFC 9110 section 12.5.1).

use crate::fields;

/// How much one media type is wanted, and how precisely the header says so.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Wish {
    /// The weight, 0 to 1; 0 is refused.
    pub q: f32,
    /// 3 for the type by name, 2 for `type/*`, 1 for `*/*`.
    pub precision: u8,
}

/// What the header says of `media_type` (lower case, no parameters): the most precise range that covers it decides.
/// `None` where none does.
pub fn wish(header: &str, media_type: &str) -> Option<Wish> {
    let mut best: Option<Wish> = None;
    for range in header.split(',') {
        let mut parts = range.split(';');
        let name = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let precision = match name.as_str() {
            "*/*" => 1,
            _ if name == media_type => 3,
            _ if name
                .strip_suffix('*')
                .is_some_and(|start| start.ends_with('/') && media_type.starts_with(start)) =>
            {
                2
            }
            _ => continue,
        };
        let q = fields::weight(parts);
        let better = |old: &Wish| (precision, q) > (old.precision, old.q);
        if best.as_ref().is_none_or(better) {
            best = Some(Wish { q, precision });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn q(header: &str, media_type: &str) -> Option<(f32, u8)> {
        wish(header, media_type).map(|wish| (wish.q, wish.precision))
    }

    #[test]
    fn the_most_precise_range_decides() {
        let header = "text/*;q=0.3, text/html ; Q=0.7, TEXT/HTML;level=1, */*;q=0.5, a/b;q=0";
        assert_eq!(q(header, "text/html"), Some((1.0, 3)));
        assert_eq!(q(header, "text/plain"), Some((0.3, 2)));
        assert_eq!(q(header, "image/png"), Some((0.5, 1)));
        assert_eq!(q(header, "a/b"), Some((0.0, 3)));
        assert_eq!(q("text/html", "a/b"), None);
        assert_eq!(q("", "a/b"), None);
        assert_eq!(q("te*", "text/html"), None);
        assert_eq!(q("a/b;q=x, a/b;q=7", "a/b"), Some((0.001, 3)));
    }

    proptest! {
        #[test]
        fn no_header_panics(header in any::<String>()) {
            let _ = wish(&header, "text/html");
        }
    }
}
