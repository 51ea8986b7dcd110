//! What a token service answers: a token, and how long it is good.

use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The lifetime of a token whose service names none.
const LIFETIME: Duration = Duration::from_secs(60);
/// A token is not used in the last part of its lifetime, and at most so long before its end.
const MARGIN: Duration = Duration::from_secs(30);
/// Stands before a token in `Authorization`.
pub(super) const BEARER: &str = "Bearer ";

/// The two moments of what is renewed while it is still good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub renew: Instant,
    pub end: Instant,
}

/// The token of a service's answer, and how long it is good.
pub(super) fn read(body: &[u8]) -> Option<(HeaderValue, Life)> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<f64>,
        issued_at: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = some(answer.token).or(some(answer.access_token))?;
    let named = answer.expires_in.filter(|seconds| *seconds > 0.0);
    let lifetime = named.map_or(LIFETIME, |seconds| Duration::from_secs_f64(seconds.min(1e8)));
    // A service may hand out a token that it made a while ago. Clocks that differ by more than its life say nothing.
    let issued = answer.issued_at.as_deref().and_then(rfc3339);
    let age = issued.and_then(|issued| SystemTime::now().duration_since(issued).ok());
    let left = lifetime - age.filter(|age| *age < lifetime).unwrap_or_default();
    bearer(&token, left)
}

/// What a token that is good for so long is sent as, and until when.
pub(super) fn bearer(token: &str, left: Duration) -> Option<(HeaderValue, Life)> {
    let mut header = HeaderValue::from_str(&format!("{BEARER}{token}")).ok()?;
    header.set_sensitive(true);
    let end = Instant::now().checked_add(left)?;
    let renew = end - MARGIN.min(left / 6);
    Some((header, Life { renew, end }))
}

/// A time as in RFC 3339 section 5.6.
fn rfc3339(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_of_token_services() {
        let until = |body: &str| {
            let (header, life) = read(body.as_bytes())?;
            assert!(life.renew < life.end, "{body}");
            let left = life.renew.saturating_duration_since(Instant::now()).as_secs();
            Some((header.to_str().unwrap().to_owned(), left))
        };
        let near = |body: &str, token: &str, seconds: u64| {
            let (header, left) = until(body).unwrap();
            assert_eq!(header, format!("Bearer {token}"), "{body}");
            assert!(left.abs_diff(seconds) < 2, "{body}: {left}");
        };
        near(r#"{"token": "a"}"#, "a", 50);
        near(r#"{"access_token": "b", "expires_in": 300}"#, "b", 270);
        near(r#"{"token": "", "access_token": "b", "expires_in": 0}"#, "b", 50);
        near(
            r#"{"token": "a", "expires_in": 60, "issued_at": "2009-11-10T23:00:00Z"}"#,
            "a",
            50,
        );
        let a_minute_ago = SystemTime::now() - Duration::from_secs(60);
        let issued = crate::catalog::rfc3339(
            i64::try_from(a_minute_ago.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap(),
        );
        near(
            &format!(r#"{{"token": "a", "expires_in": 300, "issued_at": "{issued}"}}"#),
            "a",
            210,
        );
        for bad in ["", "{}", r#"{"token": 1}"#, r#"{"token": "a\nb"}"#, "<html>"] {
            assert_eq!(until(bad), None, "{bad}");
        }
    }

    #[test]
    fn times() {
        let seconds = |text: &str| Some(rfc3339(text)?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs());
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2024-02-29T12:30:01.25Z"), Some(1_709_209_801));
        assert_eq!(seconds("2024-02-29T12:30:01+01:30"), Some(1_709_204_401));
        assert_eq!(seconds("2024-03-01T00:00:00-00:30"), Some(1_709_253_000));
        for bad in [
            "",
            "2024",
            "2024-13-01T00:00:00Z",
            "2024-02-29T12:30:01",
            "2024-02-29T12:30:01é",
            "0000-01-01T00:00:00Z",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_time_panics(text in any::<String>(), numbers in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}[-+Z0-9:é]{0,6}") {
            let _ = (rfc3339(&text), rfc3339(&numbers));
        }
    }
}
