//! Between two nodes: one asks the other for what that one fills, or has, and reads it while it grows. The path is internal
//! and authenticated by `ARTIFACTAPI_NODE_SECRET`, which itself never goes over the wire.
//!
//! An answer is a sealed line of JSON ([`Reply`]) as soon as the other's flight is that far, then the body, if there is one.
//! A body that is cut is no end: the connection breaks, and the one who asked goes on elsewhere.
//!
//! A line is sealed by the secret together with its question, which names method, path, the node that is asked and a number
//! used once: who listens cannot give an old answer to a new question. The digest of a complete body stands in the reply; a
//! body that grows comes in frames, and a sealed line after the last one tells length and digest, before which it is not
//! whole.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::{Answer, Fills, How, Outcome, PATIENCE};
use crate::cache::{Class, Finished, Head, Key, Millis, Object, hex, now_ms};
use crate::config::Secret;
use crate::fleet::{Record, random};

/// Where nodes answer one another.
pub const PATH: &str = "/-/node/object";
/// How far the clocks of two nodes may differ.
const SKEW_MS: u64 = 300_000;
/// A reply holds a stored header, which is bounded, and an error's body.
const MAX_REPLY: usize = 4 << 20;
/// Of a body that grows; a longer piece is sent in several.
pub const MAX_FRAME: usize = 1 << 20;
/// How long a node may take to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

const SIGNATURE: HeaderName = HeaderName::from_static("x-artifactapi-signature");
const KEY: HeaderName = HeaderName::from_static("x-artifactapi-key");
const TO: HeaderName = HeaderName::from_static("x-artifactapi-to");
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
    /// Who is asked, to a question for nothing, or to one that was meant for the node of another URL.
    Node { name: String, url: Option<String> },
}

/// The end of a body that grew.
#[derive(Debug, Serialize, Deserialize)]
struct Whole {
    length: u64,
    sha256: [u8; 32],
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

    /// By the fleet's word.
    pub fn said_by(record: &Record) -> Life {
        Life {
            immutable: record.class == Class::Immutable,
            checked_at: record.checked_at,
            fresh_until: record.fresh_until,
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

fn mac_of(secret: &Secret, text: &[u8]) -> Hmac<Sha256> {
    // A key of any length is one.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes())
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"));
    mac.update(text);
    mac
}

/// What makes a question to the node at `to` one that is asked once.
fn signature(secret: &Secret, (to, time, nonce): (&str, Millis, &str), question: &Question) -> Hmac<Sha256> {
    let have = question.have.map_or(String::new(), |have| have.to_string());
    let text = format!(
        "question\nGET\n{PATH}\n{to}\n{time}\n{nonce}\n{}\n{have}\n{}",
        question.from, question.key.text
    );
    mac_of(secret, text.as_bytes())
}

/// A URL as both sides write it.
fn bare(url: &str) -> &str {
    url.trim_end_matches('/')
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len() / 2)
        .map(|at| {
            text.get(at * 2..at * 2 + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect()
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
        let mut line = hex(&self.mac(what, &json).finalize().into_bytes()).into_bytes();
        line.push(b' ');
        line.extend_from_slice(&json);
        line.push(b'\n');
        line.into()
    }

    /// Reads a line, without its end.
    fn open<T: DeserializeOwned>(&self, what: &str, line: &[u8]) -> io::Result<T> {
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is not that of a node to this question",
            )
        };
        let space = line.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let given = std::str::from_utf8(&line[..space]).ok().and_then(unhex);
        let json = &line[space + 1..];
        let mac = self.mac(what, json);
        mac.verify_slice(&given.ok_or_else(wrong)?).map_err(|_| wrong())?;
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
    is_for_me: bool,
}

impl Question {
    /// Asks for nothing but who is there.
    fn hello() -> Question {
        Question {
            key: Key::from_text(""),
            from: 0,
            have: None,
        }
    }

    /// The headers that carry it to the node at `to`.
    fn headers(&self, secret: &Secret, to: &str) -> (HeaderMap, Seal) {
        let time = now_ms();
        let nonce = format!("{:016x}{:016x}", random(), random());
        let mac = hex(&signature(secret, (bare(to), time, &nonce), self)
            .finalize()
            .into_bytes());
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
        signed.verify_slice(&unhex(mac)?).ok()?;
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

impl Reply {
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

/// Bytes on their way.
pub type Incoming = BoxStream<'static, io::Result<Bytes>>;

/// A body on its way.
pub struct Body {
    pub pieces: Incoming,
    /// What the whole of it must be: known at once, or when all pieces were read, or never.
    pub whole: Arc<OnceLock<Finished>>,
}

impl Body {
    /// A body that must turn out to be what is known of it, if anything is.
    pub fn new(pieces: Incoming, whole: Option<Finished>) -> Body {
        Body {
            pieces,
            whole: Arc::new(whole.map_or_else(OnceLock::new, OnceLock::from)),
        }
    }
}

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
    /// That node cannot be reached, does not know this one, or somebody else answers.
    pub async fn ask(&self, url: &str, question: &Question) -> io::Result<(Reply, Body)> {
        let (headers, seal) = question.headers(&self.secret, url);
        let request = self.client.get(format!("{}{PATH}", bare(url))).headers(headers);
        let response = request.send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            let reason = format!(
                "it answers {}: its ARTIFACTAPI_NODE_SECRET is another one, or it is no node",
                response.status()
            );
            return Err(io::Error::other(reason));
        }
        let mut pieces = response.bytes_stream().map(|piece| piece.map_err(failed)).boxed();
        let mut read = BytesMut::new();
        let line = line(&mut pieces, &mut read, MAX_REPLY).await?;
        let reply: Reply = seal.open("answer", &line)?;
        let finished = match &reply {
            Reply::Object { finished, .. } => finished.map(|(length, sha256)| Finished { length, sha256 }),
            _ => None,
        };
        let mut body = Body::new(stream::empty().boxed(), finished);
        body.pieces = match &reply {
            Reply::Object { finished: None, .. } => unframed(pieces, read, seal, Arc::clone(&body.whole)),
            _ => {
                let begun = read.freeze();
                let begun = stream::iter((!begun.is_empty()).then_some(Ok(begun)));
                begun.chain(pieces).boxed()
            }
        };
        Ok((reply, body))
    }

    /// Who answers at `url`: name and URL.
    ///
    /// # Errors
    /// Those of [`Peers::ask`].
    pub async fn hello(&self, url: &str) -> io::Result<(String, Option<String>)> {
        let asked = tokio::time::timeout(HELLO_LIMIT, self.ask(url, &Question::hello())).await;
        match asked.map_err(|_| io::Error::other(format!("it does not answer within {HELLO_LIMIT:?}")))? {
            Ok((Reply::Node { name, url }, _)) => Ok((name, url)),
            Ok(_) => Err(io::Error::other("it does not say who it is; is it of another version?")),
            Err(error) => Err(error),
        }
    }
}

/// Takes a line off what comes, without its end.
async fn line(pieces: &mut Incoming, read: &mut BytesMut, most: usize) -> io::Result<BytesMut> {
    loop {
        if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line = read.split_to(end);
            read.advance(1);
            return Ok(line);
        }
        if read.len() > most {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line of the answer has no end",
            ));
        }
        match pieces.next().await {
            Some(piece) => read.extend_from_slice(&piece?),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The pieces of a body that grows, without what is between them; what the whole of it must be is in `whole` when they end.
fn unframed(pieces: Incoming, read: BytesMut, seal: Seal, whole: Arc<OnceLock<Finished>>) -> Incoming {
    // What is left of the frame.
    let state = (pieces, read, seal, whole, 0_usize);
    stream::try_unfold(state, |(mut pieces, mut read, seal, whole, mut left)| async move {
        loop {
            if left > 0 && !read.is_empty() {
                let piece = read.split_to(left.min(read.len())).freeze();
                left -= piece.len();
                return Ok(Some((piece, (pieces, read, seal, whole, left))));
            }
            if left == 0 && read.len() >= 4 {
                left = read.get_u32() as usize;
                if left > MAX_FRAME {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
                }
                if left == 0 {
                    let line = line(&mut pieces, &mut read, MAX_REPLY).await?;
                    let Whole { length, sha256 } = seal.open("end", &line)?;
                    let _ = whole.set(Finished { length, sha256 });
                    return Ok(None);
                }
                continue;
            }
            match pieces.next().await {
                Some(piece) => read.extend_from_slice(&piece?),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    })
    .boxed()
}

fn failed(error: reqwest::Error) -> io::Error {
    io::Error::other(crate::bucket::told(error))
}

impl Fills {
    /// What this node says to what it was asked; with the object whose body follows.
    pub async fn reply(&self, asked: &Asked) -> (Reply, Option<Arc<Object>>) {
        let question = &asked.question;
        if question.key.text.is_empty() || !asked.is_for_me {
            let me = self.shared.fleet.as_ref().map(|fleet| fleet.me().clone());
            let (name, url) = me.map_or((String::new(), None), |me| (me.name, me.url));
            return (Reply::Node { name, url }, None);
        }
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

    const URL: &str = "http://node:8000";

    fn understood(headers: &HeaderMap, secret: &Secret) -> Option<Question> {
        let asked = Question::read(headers, secret, Some("http://node:8000/"))?;
        assert!(asked.is_for_me);
        Some(asked.question)
    }

    #[test]
    fn only_who_has_the_secret_is_understood() {
        let secret = Secret::new("a secret");
        for (from, have) in [(0, None), (7, Some(u64::MAX))] {
            let key = Key::new("remote", "a/b%20c", Some("x=1"), "form");
            let question = Question { key, from, have };
            let (headers, _) = question.headers(&secret, URL);
            assert_eq!(understood(&headers, &secret), Some(question.clone()));
            assert_eq!(understood(&headers, &Secret::new("another")), None);
            let asked = Question::read(&headers, &secret, Some("http://other:8000")).unwrap();
            assert!(!asked.is_for_me);
            for name in [SIGNATURE, TO, KEY, FROM] {
                let mut without = headers.clone();
                without.remove(&name);
                assert_eq!(understood(&without, &secret), None, "without {name}");
                let mut changed = headers.clone();
                changed.insert(&name, HeaderValue::from_static("1"));
                assert_eq!(understood(&changed, &secret), None, "with another {name}");
            }
            let mut old = headers.clone();
            let time = now_ms() - SKEW_MS - 1000;
            let mac = signature(&secret, (URL, time, "1"), &question).finalize().into_bytes();
            old.insert(
                SIGNATURE,
                HeaderValue::try_from(format!("{time}:1:{}", hex(&mac))).unwrap(),
            );
            assert_eq!(understood(&old, &secret), None, "an old one");
        }
    }

    /// The pieces of a framed body that came in one way or another, and what the whole of it is.
    async fn read_back(wire: &[u8], cut: usize, seal: &Seal) -> io::Result<(Vec<u8>, Option<Finished>)> {
        let pieces = wire.chunks(cut).map(|piece| Ok(Bytes::copy_from_slice(piece)));
        let pieces = stream::iter(pieces.collect::<Vec<_>>()).boxed();
        let whole = Arc::new(OnceLock::new());
        let mut body = unframed(pieces, BytesMut::new(), seal.clone(), Arc::clone(&whole));
        let mut all = Vec::new();
        while let Some(piece) = body.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok((all, whole.get().copied()))
    }

    #[tokio::test]
    async fn an_answer_is_that_to_its_question_and_no_other() {
        let secret = Secret::new("a secret");
        let question = Question::hello();
        let (headers, seal) = question.headers(&secret, URL);
        let asked = Question::read(&headers, &secret, Some(URL)).unwrap();
        let line = asked.seal.reply(&Reply::Nothing);
        let line = line.strip_suffix(b"\n").unwrap();
        assert!(matches!(seal.open::<Reply>("answer", line), Ok(Reply::Nothing)));
        assert!(seal.open::<Reply>("end", line).is_err());
        // The very same question, asked once more.
        let (_, again) = question.headers(&secret, URL);
        assert!(again.open::<Reply>("answer", line).is_err());
        for at in 0..line.len() {
            let mut changed = line.to_vec();
            changed[at] ^= 1;
            assert!(seal.open::<Reply>("answer", &changed).is_err(), "{at}");
            assert!(seal.open::<Reply>("answer", &line[..at]).is_err(), "{at}");
        }

        let finished = Finished {
            length: 10,
            sha256: [7; 32],
        };
        let mut wire = Vec::new();
        for piece in [&b"0123"[..], b"456789"] {
            let piece = Bytes::copy_from_slice(piece);
            wire.extend_from_slice(&Seal::frame(&piece));
            wire.extend_from_slice(&piece);
        }
        wire.extend_from_slice(&asked.seal.end(finished));
        for cut in [1, 3, 7, 1000] {
            let (body, whole) = read_back(&wire, cut, &seal).await.unwrap();
            assert_eq!((&body[..], whole), (&b"0123456789"[..], Some(finished)));
        }
        for end in 0..wire.len() {
            assert!(read_back(&wire[..end], 5, &seal).await.is_err(), "cut at {end}");
        }
        assert!(read_back(&wire, 5, &again).await.is_err(), "the end of another body");
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
        let (_, seal) = Question::hello().headers(&Secret::new("a secret"), URL);
        let line = seal.reply(&Reply::of_answer(&answer));
        let (end, line) = line.split_last().unwrap();
        assert!(*end == b'\n' && !line.contains(&b'\n'));
        let back = seal.open::<Reply>("answer", line).unwrap().into_answer().unwrap();
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
