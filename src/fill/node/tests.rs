//! The protocol between nodes: what is believed, and what arrives.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;
use hmac::Mac as _;
use http::{HeaderMap, HeaderValue};

use super::message::{Question, Reply};
use super::peers::unframed;
use super::seal::{FROM, KEY, SIGNATURE, SKEW_MS, Seal, TO, signature};
use crate::cache::{Finished, Key, now_ms};
use crate::config::Secret;
use crate::fill::answer::Answer;

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
            HeaderValue::try_from(format!("{time}:1:{}", hex::encode(mac))).unwrap(),
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
