//! Comparing a body with what it must turn out to be.

use hex::FromHex;
use sha1_smol::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

/// What a body must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    Sha1([u8; 20]),
    Sha256([u8; 32]),
    /// On the heap: whoever keeps many keeps few of these.
    Sha512(Box<[u8; 64]>),
    /// Of a body that vouches for itself, once a part of it is known.
    Vouched(Box<Vouched>),
}

/// A body of which one part has a digest that is known, and says which digests the other parts have. How a body is put together
/// knows its package type.
#[derive(Debug, Clone)]
pub struct Vouched {
    /// Of that part.
    pub digest: Expected,
    /// What that part is called.
    pub part: &'static str,
    /// What compares such a body with the digest.
    pub verify: fn(&Expected) -> Box<dyn Verify>,
}

impl PartialEq for Vouched {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.part == other.part
    }
}

impl Eq for Vouched {}

/// Compares a body, while it comes, with what is expected of it.
pub trait Verify: Send + Sync {
    /// Takes the next piece.
    fn update(&mut self, piece: &[u8]);
    /// The body has ended.
    ///
    /// # Errors
    /// The body is not what was expected: what was found, for people.
    fn end(self: Box<Self>) -> Result<(), String>;
}

impl Expected {
    /// Of an algorithm (`sha1`, `sha256`, `sha512`) and a checksum in lower-case hexadecimal; `None` where it cannot be verified
    /// here.
    pub fn new(algorithm: &str, checksum: &str) -> Option<Expected> {
        // What is written in capitals is another text, and no digest of a registry's.
        let checksum = checksum
            .bytes()
            .all(|byte| !byte.is_ascii_uppercase())
            .then_some(checksum)?;
        match algorithm {
            "sha1" => FromHex::from_hex(checksum).ok().map(Expected::Sha1),
            "sha256" => FromHex::from_hex(checksum).ok().map(Expected::Sha256),
            "sha512" => {
                let digest = FromHex::from_hex(checksum).ok();
                digest.map(|digest| Expected::Sha512(Box::new(digest)))
            }
            _ => None,
        }
    }

    /// The inverse of its text, where that can name content: `sha256:…`, `sha512:…`. Two bodies with one SHA-1 can be made.
    pub fn parse(digest: &str) -> Option<Expected> {
        let (algorithm, checksum) = digest.split_once(':')?;
        Expected::new(algorithm, checksum).filter(|digest| !matches!(digest, Expected::Sha1(_)))
    }

    /// The SHA-256 of `body`.
    pub fn sha256(body: &[u8]) -> Expected {
        Expected::Sha256(Sha256::digest(body).into())
    }

    /// Whether `body` is what was expected.
    pub fn is_of(&self, body: &[u8]) -> bool {
        let mut verifier = self.verifier();
        verifier.update(body);
        verifier.end().is_ok()
    }

    /// For a body that comes in pieces.
    pub fn verifier(&self) -> Verifier {
        let digest = match self {
            Expected::Sha1(_) => Digesting::Sha1(Sha1::new()),
            Expected::Sha256(_) => Digesting::Sha256(Sha256::new()),
            Expected::Sha512(_) => Digesting::Sha512(Sha512::new()),
            Expected::Vouched(vouched) => Digesting::Vouched((vouched.verify)(&vouched.digest)),
        };
        Verifier {
            expected: self.clone(),
            digest,
        }
    }
}

/// A body that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it must have the digest {expected}, and has {found}")]
pub struct Wrong {
    pub expected: Expected,
    /// For people.
    pub found: String,
}

/// Compares a body, while it comes, with what is expected of it.
pub struct Verifier {
    expected: Expected,
    digest: Digesting,
}

enum Digesting {
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
    Vouched(Box<dyn Verify>),
}

impl Verifier {
    pub fn update(&mut self, piece: &[u8]) {
        match &mut self.digest {
            Digesting::Sha1(digest) => digest.update(piece),
            Digesting::Sha256(digest) => digest.update(piece),
            Digesting::Sha512(digest) => digest.update(piece),
            Digesting::Vouched(body) => body.update(piece),
        }
    }

    /// The body has ended.
    ///
    /// # Errors
    /// The body is not what was expected.
    pub fn end(self) -> Result<(), Wrong> {
        let found = match self.digest {
            Digesting::Sha1(digest) => Expected::Sha1(digest.digest().bytes()),
            Digesting::Sha256(digest) => Expected::Sha256(digest.finalize().into()),
            Digesting::Sha512(digest) => Expected::Sha512(Box::new(digest.finalize().into())),
            Digesting::Vouched(body) => {
                let expected = self.expected;
                return body.end().map_err(|found| Wrong { expected, found });
            }
        };
        match found == self.expected {
            true => Ok(()),
            false => Err(Wrong {
                expected: self.expected,
                found: found.to_string(),
            }),
        }
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Verifier").field(&self.expected).finish()
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Expected::Sha1(digest) => write!(f, "sha1:{}", hex::encode(digest)),
            Expected::Sha256(digest) => write!(f, "sha256:{}", hex::encode(digest)),
            Expected::Sha512(digest) => write!(f, "sha512:{}", hex::encode(&digest[..])),
            Expected::Vouched(vouched) => write!(f, "{} of {}", vouched.digest, vouched.part),
        }
    }
}
