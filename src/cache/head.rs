//! What is known of an object's content: before its body, and when that has come.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::time::Millis;
use crate::headers;

/// What is known of an object before its body: upstream's header, cleaned, and where it came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Head {
    /// Where the body came from, after redirects: relative links are resolved against this.
    pub url: String,
    /// Upstream's headers without hop-by-hop, caching and private ones.
    #[serde(with = "headers_as_pairs")]
    pub headers: HeaderMap,
    /// The length that upstream announced.
    pub content_length: Option<u64>,
    /// When the body was fetched.
    pub stored_at: Millis,
    /// Upstream marked no end of the body but that of the connection (RFC 9112 section 6.3), which a cut looks like.
    #[serde(default)]
    pub unframed: bool,
    /// Upstream answers ranges of it.
    #[serde(default)]
    pub ranges: bool,
    /// The object is a name: it has no body, and stands for content that is stored under its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_for: Option<Referent>,
}

/// The content that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Referent {
    /// `sha256:…` or `sha512:…`.
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

impl Head {
    fn text(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
    pub fn content_type(&self) -> &str {
        self.text(header::CONTENT_TYPE).unwrap_or("")
    }
    /// Only `gzip` and its like; `identity` is none, nor is what is no registered coding.
    pub fn content_encoding(&self) -> Option<&str> {
        headers::known_coding(&self.headers)
    }
    pub fn etag(&self) -> Option<&str> {
        self.text(header::ETAG)
    }
    pub fn last_modified(&self) -> Option<&str> {
        self.text(header::LAST_MODIFIED)
    }
}

mod headers_as_pairs {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(headers: &HeaderMap, serializer: S) -> Result<S::Ok, S::Error> {
        // Latin-1: header values are octets (RFC 9110 section 5.5), not always UTF-8.
        serializer.collect_seq(headers.iter().map(|(name, value)| {
            (
                name.as_str(),
                value.as_bytes().iter().map(|b| char::from(*b)).collect::<String>(),
            )
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HeaderMap, D::Error> {
        let pairs = Vec::<(String, String)>::deserialize(deserializer)?;
        let mut headers = HeaderMap::with_capacity(pairs.len());
        for (name, value) in pairs {
            let octets: Vec<u8> = value
                .chars()
                .map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?'))
                .collect();
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).map_err(D::Error::custom)?,
                HeaderValue::from_bytes(&octets).map_err(D::Error::custom)?,
            );
        }
        Ok(headers)
    }
}

/// What only the end of a body tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    pub length: u64,
    pub sha256: [u8; 32],
}

/// Names content by its digest: see [`super::Object::identity`].
pub fn identity(finished: &Finished, stands_for: Option<&Referent>) -> u64 {
    let digest: [u8; 32] = match stands_for {
        Some(referent) => Sha256::digest(referent.digest.as_bytes()).into(),
        None => finished.sha256,
    };
    let mut word = [0; 8];
    word.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(word)
}
