//! What nodes say to one another.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::cache::{Class, Head, Key, Millis, Object};
use crate::fill::answer::Answer;
use crate::fleet::Word;

/// What one node asks another for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub key: Key,
    /// The first byte of the body that is wanted.
    pub from: u64,
    /// The identity of the content that is stored already.
    pub have: Option<u64>,
}

impl Question {
    /// Asks for nothing but who is there.
    pub(super) fn hello() -> Question {
        Question {
            key: Key::from_text(""),
            from: 0,
            have: None,
        }
    }
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
        /// The object was, or is being, fetched from upstream for this.
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
    /// The object is not here (any more).
    Nothing,
    /// Who is asked, to a question for nothing, or to one that was meant for the node of another URL.
    Node { name: String, url: Option<String> },
}

impl Reply {
    pub(super) fn of_answer(answer: &Answer) -> Reply {
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
    pub fn said_by(word: &Word) -> Life {
        Life {
            immutable: word.class == Class::Immutable,
            checked_at: word.checked_at,
            fresh_until: word.fresh_until,
        }
    }

    /// Class and times, for the store.
    pub fn parts(self) -> (Class, Millis, Millis) {
        let class = if self.immutable {
            Class::Immutable
        } else {
            Class::Mutable
        };
        (class, self.checked_at, self.fresh_until)
    }
}
