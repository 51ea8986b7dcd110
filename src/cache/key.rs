//! What objects are stored under.

use std::sync::Arc;

/// The hash that names an object in every tier.
pub type Hash = [u8; 16];

/// What an object is stored under: remote, path with query, and form, framed so that no two of them collide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `remote NUL path?query NUL form`.
    pub text: Arc<str>,
    pub hash: Hash,
}

impl Key {
    /// The key of a document of `remote`; `path` in its canonical encoded spelling, so that it cannot hold a NUL.
    pub fn new(remote: &str, path: &str, query: Option<&str>, form: &str) -> Self {
        let mut text =
            String::with_capacity(remote.len() + path.len() + form.len() + 2 + query.map_or(0, str::len) + 1);
        text.push_str(remote);
        text.push('\0');
        text.push_str(path);
        if let Some(query) = query {
            text.push('?');
            text.push_str(query);
        }
        text.push('\0');
        text.push_str(form);
        Key::from_text(&text)
    }

    /// The key of this text, which was a key's once.
    pub fn from_text(text: &str) -> Self {
        Key {
            hash: pingora_cache::key::hash_key(text),
            text: text.into(),
        }
    }

    /// Whether it is part of what other nodes share: not of a view, which each node writes for itself, and not of what
    /// only waits to be verified (its form begins with `~`).
    pub fn is_shared(&self) -> bool {
        let (remote, _, form) = self.parts();
        !remote.is_empty() && !form.starts_with('~')
    }

    /// Remote, path with query, form.
    pub fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.text.splitn(3, '\0');
        (
            parts.next().unwrap_or(""),
            parts.next().unwrap_or(""),
            parts.next().unwrap_or(""),
        )
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// A key for logs and errors.
pub fn shown(key: &Key) -> String {
    key.text.replace('\0', " ").trim().to_owned()
}
