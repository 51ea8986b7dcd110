//! Signed questions and sealed answers: who does not have the secret of the fleet can write neither.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::PATH;
use super::message::{Question, Reply};
use crate::cache::{Finished, Key, Millis, now_ms};
use crate::config::Secret;
use crate::fleet::random;

/// How far the clocks of two nodes may differ.
pub(super) const SKEW_MS: u64 = 300_000;

pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("x-artifactapi-signature");
pub(super) const KEY: HeaderName = HeaderName::from_static("x-artifactapi-key");
pub(super) const TO: HeaderName = HeaderName::from_static("x-artifactapi-to");
pub(super) const FROM: HeaderName = HeaderName::from_static("x-artifactapi-from");
pub(super) const HAVE: HeaderName = HeaderName::from_static("x-artifactapi-have");

/// The end of a body that grew.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Whole {
    pub(super) length: u64,
    pub(super) sha256: [u8; 32],
}

fn mac_of(secret: &Secret, text: &[u8]) -> Hmac<Sha256> {
    // A key of any length is one.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes())
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"));
    mac.update(text);
    mac
}

/// What makes a question to the node at `to` one that is asked once.
pub(super) fn signature(secret: &Secret, (to, time, nonce): (&str, Millis, &str), question: &Question) -> Hmac<Sha256> {
    let have = question.have.map_or(String::new(), |have| have.to_string());
    let text = format!(
        "question\nGET\n{PATH}\n{to}\n{time}\n{nonce}\n{}\n{have}\n{}",
        question.from, question.key.text
    );
    mac_of(secret, text.as_bytes())
}

/// A URL as both sides write it.
pub(super) fn bare(url: &str) -> &str {
    url.trim_end_matches('/')
}

/// Closes the lines of the answer to one question: only a node of the fleet writes them, and they answer no other.
#[derive(Debug, Clone)]
pub struct Seal {
    secret: Secret,
    question: String,
}

impl Seal {
    fn mac(&self, what: &str, line: &[u8]) -> Hmac<Sha256> {
        let mut mac = mac_of(&self.secret, format!("{what}\n{}\n", self.question).as_bytes());
        mac.update(line);
        mac
    }

    fn close(&self, what: &str, value: &impl Serialize) -> Bytes {
        let json = serde_json::to_vec(value).unwrap_or_default();
        let mut line = hex::encode(self.mac(what, &json).finalize().into_bytes()).into_bytes();
        line.push(b' ');
        line.extend_from_slice(&json);
        line.push(b'\n');
        line.into()
    }

    /// Reads a line, without its end.
    pub(super) fn open<T: DeserializeOwned>(&self, what: &str, line: &[u8]) -> io::Result<T> {
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is not that of a node to this question",
            )
        };
        let space = line.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let given = hex::decode(&line[..space]).map_err(|_| wrong())?;
        let json = &line[space + 1..];
        let mac = self.mac(what, json);
        mac.verify_slice(&given).map_err(|_| wrong())?;
        Ok(serde_json::from_slice(json)?)
    }

    /// The line that an answer begins with.
    pub fn reply(&self, reply: &Reply) -> Bytes {
        self.close("answer", reply)
    }

    /// What stands before a piece of a body that grows.
    pub fn frame(piece: &Bytes) -> Bytes {
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        Bytes::copy_from_slice(&length.to_be_bytes())
    }

    /// What comes after its last piece.
    pub fn end(&self, finished: Finished) -> Bytes {
        let Finished { length, sha256 } = finished;
        let mut end = 0_u32.to_be_bytes().to_vec();
        end.extend_from_slice(&self.close("end", &Whole { length, sha256 }));
        end.into()
    }
}

/// A question that a node asked this one.
#[derive(Debug, Clone)]
pub struct Asked {
    pub question: Question,
    /// For the answer.
    pub seal: Seal,
    /// Whether it was meant for this node.
    pub(super) is_for_me: bool,
}

impl Question {
    /// The headers that carry it to the node at `to`.
    pub(super) fn headers(&self, secret: &Secret, to: &str) -> (HeaderMap, Seal) {
        let time = now_ms();
        let nonce = format!("{:016x}{:016x}", random(), random());
        let mac = hex::encode(
            signature(secret, (bare(to), time, &nonce), self)
                .finalize()
                .into_bytes(),
        );
        let mut headers = HeaderMap::new();
        let mut put = |name, text: String| {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        };
        put(SIGNATURE, format!("{time}:{nonce}:{mac}"));
        put(TO, bare(to).to_owned());
        put(KEY, BASE64.encode(self.key.text.as_bytes()));
        put(FROM, self.from.to_string());
        if let Some(have) = self.have {
            put(HAVE, have.to_string());
        }
        let seal = Seal {
            secret: secret.clone(),
            question: mac,
        };
        (headers, seal)
    }

    /// The question that a request carries to the node at `me`, if it was signed by a node of this fleet within the last
    /// minutes.
    pub fn read(headers: &HeaderMap, secret: &Secret, me: Option<&str>) -> Option<Asked> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let mut parts = text(SIGNATURE)?.split(':');
        let (time, nonce, mac) = (parts.next()?, parts.next()?, parts.next()?);
        let time: Millis = time.parse().ok()?;
        let to = text(TO)?;
        let key = BASE64.decode(text(KEY)?).ok()?;
        let question = Question {
            key: Key::from_text(std::str::from_utf8(&key).ok()?),
            from: text(FROM)?.parse().ok()?,
            have: match text(HAVE) {
                Some(have) => Some(have.parse().ok()?),
                None => None,
            },
        };
        let signed = signature(secret, (to, time, nonce), &question);
        signed.verify_slice(&hex::decode(mac).ok()?).ok()?;
        (now_ms().abs_diff(time) <= SKEW_MS).then(|| Asked {
            question,
            seal: Seal {
                secret: secret.clone(),
                question: mac.to_owned(),
            },
            is_for_me: me.is_some_and(|me| bare(me) == to),
        })
    }
}
