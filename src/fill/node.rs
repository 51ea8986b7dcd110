//! Between two nodes: one asks the other for what that one fills, or has, and reads it while it grows. The path is internal
//! and authenticated by `ARTIFACTAPI_NODE_SECRET`, which itself never goes over the wire.
//!
//! An answer is a line of JSON ([`Reply`]) as soon as the other's flight is that far, then the body, if there is one. A body
//! that is cut is no end: the connection breaks, and the one who asked goes on elsewhere.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::{Answer, Fills, How, Outcome, PATIENCE};
use crate::cache::{Class, Finished, Head, Key, Millis, Object, hex, now_ms};
use crate::config::Secret;

/// Where nodes answer one another.
pub const PATH: &str = "/-/node/object";
/// How far the clocks of two nodes may differ.
const SKEW_MS: u64 = 300_000;
/// A reply holds a stored header, which is bounded, and an error's body.
const MAX_REPLY: usize = 4 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

const SIGNATURE: HeaderName = HeaderName::from_static("x-artifactapi-signature");
const KEY: HeaderName = HeaderName::from_static("x-artifactapi-key");
const FROM: HeaderName = HeaderName::from_static("x-artifactapi-from");
const HAVE: HeaderName = HeaderName::from_static("x-artifactapi-have");

/// What one node asks another for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub key: Key,
    /// The first byte of the body that is wanted.
    pub from: u64,
    /// The identity of the content that is stored already.
    pub have: Option<u64>,
}

/// What a node says of what it was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The body follows.
    Object {
        head: Box<Head>,
        life: Life,
        /// Length and SHA-256 of the whole body, where it is complete.
        finished: Option<(u64, [u8; 32])>,
        /// It was, or is being, fetched from upstream for this.
        fetched: bool,
    },
    /// What was said to be there already is current.
    Same(Life),
    /// Upstream's own answer, which is not stored.
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
        retry_after: Option<String>,
    },
    /// Upstream was not reached.
    Unreachable,
    /// What is, or was, got here cannot be passed on: ask upstream.
    Yours,
    /// It is not here (any more).
    Nothing,
}

/// Freshness, as one node tells it another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    pub immutable: bool,
    pub checked_at: Millis,
    pub fresh_until: Millis,
}

impl Life {
    pub fn of(object: &Object) -> Life {
        Life {
            immutable: object.fresh.class() == Class::Immutable,
            checked_at: object.fresh.checked_at(),
            fresh_until: object.fresh.fresh_until(),
        }
    }

    /// As the store takes it.
    pub fn parts(self) -> (Class, Millis, Millis) {
        let class = if self.immutable {
            Class::Immutable
        } else {
            Class::Mutable
        };
        (class, self.checked_at, self.fresh_until)
    }
}

fn signature(secret: &Secret, time: Millis, question: &Question) -> Hmac<Sha256> {
    // A key of any length is one.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes())
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"));
    let have = question.have.map_or(String::new(), |have| have.to_string());
    mac.update(format!("{PATH}\n{time}\n{}\n{have}\n{}", question.from, question.key.text).as_bytes());
    mac
}

impl Question {
    /// The headers that carry it.
    fn headers(&self, secret: &Secret) -> HeaderMap {
        let time = now_ms();
        let mac = signature(secret, time, self).finalize().into_bytes();
        let mut headers = HeaderMap::new();
        let mut put = |name, text: String| {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        };
        put(SIGNATURE, format!("{time}:{}", hex(&mac)));
        put(KEY, BASE64.encode(self.key.text.as_bytes()));
        put(FROM, self.from.to_string());
        if let Some(have) = self.have {
            put(HAVE, have.to_string());
        }
        headers
    }

    /// The question that a request carries, if it was signed by a node of this fleet within the last minutes.
    pub fn read(headers: &HeaderMap, secret: &Secret) -> Option<Question> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let (time, mac) = text(SIGNATURE)?.split_once(':')?;
        let time: Millis = time.parse().ok()?;
        let key = BASE64.decode(text(KEY)?).ok()?;
        let question = Question {
            key: Key::from_text(std::str::from_utf8(&key).ok()?),
            from: text(FROM)?.parse().ok()?,
            have: match text(HAVE) {
                Some(have) => Some(have.parse().ok()?),
                None => None,
            },
        };
        let given: Vec<u8> = (0..mac.len() / 2)
            .map(|at| {
                mac.get(at * 2..at * 2 + 2)
                    .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            })
            .collect::<Option<_>>()?;
        let signed = signature(secret, time, &question).verify_slice(&given).is_ok();
        (signed && now_ms().abs_diff(time) <= SKEW_MS).then_some(question)
    }
}

impl Reply {
    /// A line.
    pub fn encode(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line.into()
    }

    fn of_answer(answer: &Answer) -> Reply {
        // A failure of this node's own says little of what the other would meet.
        match answer.reason {
            Some(_) if answer.unreachable => return Reply::Unreachable,
            Some(_) => return Reply::Yours,
            None => {}
        }
        let latin = |value: &HeaderValue| value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
        Reply::Answer {
            status: answer.status,
            headers: answer
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), latin(value)))
                .collect(),
            body: BASE64.encode(&answer.body),
            retry_after: answer.retry_after.clone(),
        }
    }

    /// Upstream's answer, if it is one.
    pub fn into_answer(self) -> Option<Answer> {
        let Reply::Answer {
            status,
            headers: pairs,
            body,
            retry_after,
        } = self
        else {
            return None;
        };
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let octets: Vec<u8> = value
                .chars()
                .map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?'))
                .collect();
            headers.append(HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(&octets).ok()?);
        }
        Some(Answer {
            status,
            headers,
            body: BASE64.decode(body).ok()?.into(),
            reason: None,
            unreachable: false,
            retry_after,
        })
    }
}

/// The asking side.
#[derive(Debug)]
pub struct Peers {
    client: reqwest::Client,
    secret: Secret,
}

/// A body on its way.
pub type Incoming = BoxStream<'static, io::Result<Bytes>>;

impl Peers {
    /// Asks nobody yet.
    ///
    /// # Errors
    /// The system's certificates cannot be used.
    pub fn new(secret: Secret) -> reqwest::Result<Peers> {
        // Only the first one counts; all are the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .build()?;
        Ok(Peers { client, secret })
    }

    /// Asks the node at `url`. Waits as long as that node does; whoever calls this watches that it lives.
    ///
    /// # Errors
    /// It cannot be reached, or does not know this node.
    pub async fn ask(&self, url: &str, question: &Question) -> io::Result<(Reply, Incoming)> {
        let url = format!("{}{PATH}", url.trim_end_matches('/'));
        let request = self.client.get(url).headers(question.headers(&self.secret));
        let response = request.send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            let reason = format!(
                "the other node answered {}: is its ARTIFACTAPI_NODE_SECRET the same?",
                response.status()
            );
            return Err(io::Error::other(reason));
        }
        let mut pieces = response.bytes_stream().map(|piece| piece.map_err(failed)).boxed();
        let mut line = BytesMut::new();
        loop {
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let reply = line.split_to(end);
                line.advance(1);
                let rest = line.freeze();
                let begun = stream::iter((!rest.is_empty()).then_some(Ok(rest)));
                return Ok((serde_json::from_slice(&reply)?, begun.chain(pieces).boxed()));
            }
            match pieces.next().await {
                Some(piece) if line.len() < MAX_REPLY => line.extend_from_slice(&piece?),
                Some(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the other node's reply has no end",
                    ));
                }
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

fn failed(error: reqwest::Error) -> io::Error {
    io::Error::other(error.without_url())
}

impl Fills {
    /// What this node says to `question`; with the object whose body follows.
    pub async fn reply(&self, question: &Question) -> (Reply, Option<Arc<Object>>) {
        let flight = self.flight_of(&question.key.hash);
        let outcome = match flight {
            Some(mut outcome) => match tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await {
                Ok(Ok(outcome)) => outcome.clone(),
                _ => None,
            },
            None => self
                .store
                .open_object(&question.key)
                .await
                .map(|object| Outcome::Object(object, How::Found)),
        };
        match outcome {
            None => (Reply::Nothing, None),
            Some(Outcome::Direct) => (Reply::Yours, None),
            Some(Outcome::Answer(answer)) => (Reply::of_answer(&answer), None),
            Some(Outcome::Object(object, _)) if !object.is_kept() || object.head.unframed => (Reply::Yours, None),
            Some(Outcome::Object(object, _)) if object.is_complete() && object.identity() == question.have => {
                (Reply::Same(Life::of(&object)), None)
            }
            Some(Outcome::Object(object, how)) => {
                let reply = Reply::Object {
                    head: Box::new(object.head.clone()),
                    life: Life::of(&object),
                    finished: object.finished().map(|Finished { length, sha256 }| (length, sha256)),
                    fetched: how == How::Fetched || !object.is_complete(),
                };
                (reply, Some(object))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_the_secret_is_understood() {
        let secret = Secret::new("a secret");
        for (from, have) in [(0, None), (7, Some(u64::MAX))] {
            let key = Key::new("remote", "a/b%20c", Some("x=1"), "form");
            let question = Question { key, from, have };
            let headers = question.headers(&secret);
            assert_eq!(Question::read(&headers, &secret), Some(question.clone()));
            assert_eq!(Question::read(&headers, &Secret::new("another")), None);
            for name in [SIGNATURE, KEY, FROM] {
                let mut without = headers.clone();
                without.remove(&name);
                assert_eq!(Question::read(&without, &secret), None, "without {name}");
                let mut changed = headers.clone();
                changed.insert(&name, HeaderValue::from_static("1"));
                assert_eq!(Question::read(&changed, &secret), None, "with another {name}");
            }
            let mut old = headers.clone();
            let time = now_ms() - SKEW_MS - 1000;
            let mac = signature(&secret, time, &question).finalize().into_bytes();
            old.insert(
                SIGNATURE,
                HeaderValue::try_from(format!("{time}:{}", hex(&mac))).unwrap(),
            );
            assert_eq!(Question::read(&old, &secret), None, "an old one");
        }
    }

    #[test]
    fn answers_survive_the_way() {
        let mut headers = HeaderMap::new();
        headers.insert("x-some", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        let answer = Answer {
            status: 404,
            headers,
            body: Bytes::from_static(b"\x00not\nfound"),
            reason: None,
            unreachable: false,
            retry_after: Some("3".into()),
        };
        let line = Reply::of_answer(&answer).encode();
        let (end, line) = line.split_last().unwrap();
        assert!(*end == b'\n' && !line.contains(&b'\n'));
        let back = serde_json::from_slice::<Reply>(line).unwrap().into_answer().unwrap();
        assert_eq!(
            (back.status, back.headers, back.body),
            (404, answer.headers.clone(), answer.body.clone())
        );
        let failure = Answer {
            reason: Some("no route".into()),
            ..answer
        };
        assert!(matches!(Reply::of_answer(&failure), Reply::Yours));
    }
}
