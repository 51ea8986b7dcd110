//! A line of the access log. Whatever a client sent stands in it as a JSON string, so that it can neither end the line nor
//! begin another, and without the values of its query, which may be secrets.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::macros::format_description;

/// What of a path or a client's name is logged.
const LONGEST: usize = 8 << 10;

/// What is known of a request when it begins.
#[derive(Debug)]
pub struct Asked<'a> {
    pub id: &'a [u8],
    /// Who asks, as far as trusted proxies tell.
    pub client: Option<IpAddr>,
    /// `None`: it could not be read.
    pub method: Option<&'a str>,
    /// In origin form, as received.
    pub target: Option<&'a [u8]>,
    pub protocol: &'static str,
    pub user_agent: Option<&'a [u8]>,
}

/// What is known when it was answered.
#[derive(Debug)]
pub struct Answered<'a> {
    pub remote: Option<&'a str>,
    /// 0: nothing was answered.
    pub status: u16,
    /// Of the body.
    pub bytes: u64,
    /// How the cache came into it.
    pub cache: &'static str,
    /// From the request's head to the answer's end.
    pub took: Duration,
    /// What of that was spent waiting for upstream; `None`: it had no part in it.
    pub upstream: Option<Duration>,
}

/// A line that is being written. The memory is used again.
#[derive(Debug, Default)]
pub struct Line(Vec<u8>);

impl Line {
    /// Begins a line, at the time `took` ago.
    pub fn begin(&mut self, asked: &Asked<'_>, took: Duration) {
        self.0.clear();
        self.raw(b"{\"time\":\"");
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        write_time(&mut self.0, since.saturating_sub(took));
        self.raw(b"\",\"request_id\":\"");
        // It was made here or looked at before.
        self.raw(asked.id);
        match asked.client {
            Some(IpAddr::V4(client)) => {
                let mut before: &[u8] = b"\",\"client\":\"";
                for octet in client.octets() {
                    self.raw(before);
                    self.number(u64::from(octet));
                    before = b".";
                }
                self.raw(b"\"");
            }
            Some(IpAddr::V6(client)) => {
                // To a vector nothing fails.
                let _ = write!(self.0, "\",\"client\":\"{client}\"");
            }
            None => self.raw(b"\",\"client\":null"),
        }
        self.text(b",\"method\":", asked.method.map(str::as_bytes));
        match asked.target {
            Some(target) => {
                self.raw(b",\"path\":\"");
                self.target(target);
                self.raw(b"\"");
            }
            None => self.raw(b",\"path\":null"),
        }
        self.raw(b",\"protocol\":\"");
        self.raw(asked.protocol.as_bytes());
        self.text(b"\",\"user_agent\":", asked.user_agent);
    }

    /// Ends the line, which is then whole.
    pub fn end(&mut self, answered: &Answered<'_>) -> &[u8] {
        match answered.remote {
            // The configuration lets no name have anything else than letters, digits and `._-`.
            Some(remote) => {
                self.raw(b",\"remote\":\"");
                self.raw(remote.as_bytes());
                self.raw(b"\",\"status\":");
            }
            None => self.raw(b",\"remote\":null,\"status\":"),
        }
        self.number(u64::from(answered.status));
        self.raw(b",\"bytes\":");
        self.number(answered.bytes);
        self.raw(b",\"cache\":\"");
        self.raw(answered.cache.as_bytes());
        self.raw(b"\",\"seconds\":");
        self.seconds(answered.took);
        match answered.upstream {
            Some(upstream) => {
                self.raw(b",\"upstream_seconds\":");
                self.seconds(upstream);
            }
            None => self.raw(b",\"upstream_seconds\":null"),
        }
        self.raw(b"}\n");
        &self.0
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut left = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.raw(&digits[at..]);
    }

    /// With six decimals.
    fn seconds(&mut self, duration: Duration) {
        self.number(duration.as_secs());
        let mut decimals = *b".000000";
        let mut left = duration.subsec_micros();
        for digit in decimals[1..].iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        self.raw(&decimals);
    }

    fn text(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.raw(name);
        match value {
            Some(value) => {
                self.raw(b"\"");
                self.escaped(&value[..value.len().min(LONGEST)]);
                self.raw(b"\"");
            }
            None => self.raw(b"null"),
        }
    }

    /// A target without what its query holds: of each parameter the name, and of one that has none nothing.
    fn target(&mut self, target: &[u8]) {
        let target = &target[..target.len().min(LONGEST)];
        let Some(at) = memchr::memchr(b'?', target) else {
            return self.escaped(target);
        };
        self.escaped(&target[..at]);
        let mut separator = b'?';
        for parameter in target[at + 1..].split(|byte| *byte == b'&') {
            self.raw(&[separator]);
            separator = b'&';
            match memchr::memchr(b'=', parameter) {
                Some(at) => {
                    self.escaped(&parameter[..=at]);
                    self.raw(b"***");
                }
                None if parameter.is_empty() => {}
                None => self.raw(b"***"),
            }
        }
    }

    /// The inside of a JSON string (RFC 8259 section 7).
    fn escaped(&mut self, text: &[u8]) {
        let is_plain = |byte: u8| (0x20..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\');
        // All of it is looked at, which is done for many bytes at once.
        if text.iter().fold(true, |plain, byte| plain & is_plain(*byte)) {
            return self.raw(text);
        }
        for character in String::from_utf8_lossy(text).chars() {
            match character {
                '"' | '\\' => self.raw(&[b'\\', character as u8]),
                // Controls, of Unicode too: a terminal may act on them, and some readers end a line at them.
                _ if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') => {
                    let _ = write!(self.0, "\\u{:04x}", character as u32);
                }
                _ => self.raw(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}

/// RFC 3339 with milliseconds, in UTC; all but those are spelled anew once a second.
fn write_time(into: &mut Vec<u8>, since: Duration) {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    SECOND.with_borrow_mut(|(at, spelled)| {
        if *at != since.as_secs() || spelled.is_empty() {
            let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
            *at = since.as_secs();
            *spelled = OffsetDateTime::from(UNIX_EPOCH + since)
                .format(&format)
                .unwrap_or_default();
        }
        into.extend_from_slice(spelled.as_bytes());
    });
    let millis = since.subsec_millis();
    let digit = |power: u32| b'0' + (millis / power % 10) as u8;
    into.extend_from_slice(&[b'.', digit(100), digit(10), digit(1), b'Z']);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn line(target: &[u8], user_agent: &[u8]) -> String {
        let mut line = Line::default();
        let asked = Asked {
            id: b"id",
            client: Some(IpAddr::from([192, 0, 2, 1])),
            method: Some("GET"),
            target: Some(target),
            protocol: "HTTP/1.1",
            user_agent: Some(user_agent),
        };
        line.begin(&asked, Duration::ZERO);
        let answered = Answered {
            remote: None,
            status: 200,
            bytes: 1_234_567_890_123,
            cache: "hit",
            took: Duration::from_micros(1_000_042),
            upstream: None,
        };
        String::from_utf8(line.end(&answered).to_vec()).unwrap()
    }

    fn path(target: &[u8]) -> String {
        let value: Value = serde_json::from_str(&line(target, b"")).unwrap();
        value["path"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_line_has_all_fields() {
        let value: Value = serde_json::from_str(&line(b"/a", b"pip/23")).unwrap();
        let object = value.as_object().unwrap();
        let expected = serde_json::json!({
            "time": object["time"], "request_id": "id", "client": "192.0.2.1", "method": "GET", "path": "/a",
            "protocol": "HTTP/1.1", "user_agent": "pip/23", "remote": null, "status": 200, "bytes": 1_234_567_890_123u64,
            "cache": "hit", "seconds": 1.000_042, "upstream_seconds": null,
        });
        assert_eq!(value, expected);
        let time = object["time"].as_str().unwrap();
        let read = OffsetDateTime::parse(time, &time::format_description::well_known::Rfc3339).unwrap();
        assert!(
            (OffsetDateTime::now_utc() - read).abs() < time::Duration::seconds(60),
            "{time}"
        );
        assert_eq!((time.len(), &time[19..20], &time[23..]), (24, ".", "Z"));
    }

    #[test]
    fn no_value_of_a_query_is_logged() {
        for (target, expected) in [
            (&b"/a"[..], "/a"),
            (b"/a?", "/a?"),
            (b"/a?token=s3cret", "/a?token=***"),
            (
                b"/a?x=1&X-Amz-Signature=s3=cret&y=",
                "/a?x=***&X-Amz-Signature=***&y=***",
            ),
            (b"/a?s3cret", "/a?***"),
            (b"/a?&&s3cret?s3cret", "/a?&&***"),
        ] {
            assert_eq!(path(target), expected);
        }
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_stays_in_its_field(
            target in proptest::collection::vec(any::<u8>(), 0..60),
            user_agent in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let line = line(&target, &user_agent);
            prop_assert_eq!(line.lines().count(), 1);
            let is_ended = line.ends_with("}\n");
            prop_assert!(is_ended && !line[..line.len() - 1].contains(char::is_control));
            let value: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(value.as_object().unwrap().len(), 13);
            let agent = String::from_utf8_lossy(&user_agent).into_owned();
            prop_assert_eq!(value["user_agent"].as_str(), Some(agent.as_str()));
            if !target.contains(&b'?') {
                let target = String::from_utf8_lossy(&target).into_owned();
                prop_assert_eq!(value["path"].as_str(), Some(target.as_str()));
            }
        }

        #[test]
        fn seconds_are_read_as_what_they_are(micros in 0u64..10_000_000_000_000) {
            let mut line = Line::default();
            line.seconds(Duration::from_micros(micros));
            let read: f64 = std::str::from_utf8(&line.0).unwrap().parse().unwrap();
            prop_assert!((read - micros as f64 / 1e6).abs() < 1e-3);
        }
    }
}
