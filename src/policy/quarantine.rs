//! What is held back because it was published a short while ago: time for others to find out what is wrong with it.

use std::time::UNIX_EPOCH;

use http::{HeaderMap, header};

use super::Policy;
use crate::cache::Millis;
use crate::formats::hold::{self, Dates, Verdict};
use crate::formats::{Asset, Class};

/// Whether an artifact may be held: none that is mutable, nor an index, is. What an index names is.
pub fn covers(asset: &Asset, policy: Policy) -> bool {
    asset.remote.quarantine.is_on() && policy.class == Class::Immutable && !asset.is_index()
}

/// What the policy says of an artifact at `now`, unless somebody lets it through.
pub fn judge(asset: &Asset, dates: Dates, now: Millis) -> Verdict {
    hold::judge(&asset.remote.quarantine, asset.named(), dates, now / 1000).0
}

/// When content was published, in Unix seconds, by what upstream says in `Last-Modified`. `None`: upstream says nothing, or
/// nothing that is a date (RFC 9110 section 5.6.7).
pub fn published(headers: &HeaderMap) -> Option<u64> {
    let published = headers.get(header::LAST_MODIFIED)?.to_str().ok()?;
    let published = httpdate::parse_http_date(published).ok()?.duration_since(UNIX_EPOCH);
    // What is older than that was published long ago.
    Some(published.map_or(0, |since| since.as_secs()))
}

#[cfg(test)]
mod tests {
    const DAY: u64 = 24 * 3600;

    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::formats::{path, testing};
    use crate::policy::classify;

    /// Until when `path` is held at `now`, both in Unix seconds.
    fn held(package: &str, path: &str, days: Option<u32>, published: Option<&str>, now: u64) -> Option<u64> {
        let mut remote = testing::remote(package, "https://upstream.example/");
        remote.quarantine.days = days;
        let remote = Arc::new(remote);
        let path = path::parse(path.as_bytes(), None).unwrap();
        let asset = crate::formats::asset(&remote, path, None).unwrap();
        let mut headers = HeaderMap::new();
        if let Some(published) = published {
            headers.insert(header::LAST_MODIFIED, HeaderValue::from_str(published).unwrap());
        }
        if !covers(&asset, classify(&asset).unwrap()) {
            return None;
        }
        let published = super::published(&headers);
        match judge(
            &asset,
            Dates {
                published,
                first_seen: None,
            },
            now * 1000,
        ) {
            Verdict::Held { until, .. } => until,
            Verdict::Free(_) => None,
        }
    }

    const NOW: u64 = 1_700_000_000;

    #[test]
    fn only_what_is_dated_immutable_and_no_index_is_held() {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(NOW - 10));
        let date = Some(date.as_str());
        let until = Some(NOW - 10 + 3 * DAY);
        assert_eq!(held("generic", "a.tar.gz", Some(3), date, NOW), until);
        assert_eq!(held("generic", "a.tar.gz", None, date, NOW), None);
        assert_eq!(held("generic", "a.tar.gz", Some(3), None, NOW), None);
        assert_eq!(held("generic", "a.tar.gz", Some(3), Some("yesterday"), NOW), None);
        assert_eq!(held("pypi", "simple/six/", Some(3), date, NOW), None);
        assert_eq!(
            held("pypi", "packages/six-1.0-py3-none-any.whl", Some(3), date, NOW),
            until
        );
        let checksum = "a".repeat(64);
        assert_eq!(held("rpm", "repodata/repomd.xml", Some(3), date, NOW), None);
        let metadata = format!("repodata/{checksum}-primary.xml.gz");
        assert_eq!(held("rpm", &metadata, Some(3), date, NOW), None);
        assert_eq!(held("rpm", "Packages/a-1-1.x86_64.rpm", Some(3), date, NOW), until);
        assert_eq!(
            held("docker", &format!("a/b/blobs/sha256:{checksum}"), Some(3), date, NOW),
            until
        );
        assert_eq!(held("docker", "a/b/manifests/latest", Some(3), date, NOW), None);
    }

    proptest! {
        #[test]
        fn what_is_held_is_let_through_when_its_days_are_over(
            published in 0_u64..4_000_000_000, days in 0_u32..36_500, now in 0_u64..8_000_000_000
        ) {
            let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(published));
            let due = published + u64::from(days) * DAY;
            let until = held("generic", "a", Some(days), Some(&date), now);
            prop_assert_eq!(until, (now < due).then_some(due));
        }
    }
}
