//! Comparing a body with the digest that it must have.

use hex::FromHex;
use sha2::{Digest as _, Sha256, Sha512};

/// What a body must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Expected {
    /// Of an algorithm and a checksum in lower-case hexadecimal; `None` where it cannot be verified here.
    pub fn new(algorithm: &str, checksum: &str) -> Option<Expected> {
        // What is written in capitals is another text, and no digest of a registry's.
        let checksum = checksum
            .bytes()
            .all(|byte| !byte.is_ascii_uppercase())
            .then_some(checksum)?;
        match algorithm {
            "sha256" => FromHex::from_hex(checksum).ok().map(Expected::Sha256),
            "sha512" => FromHex::from_hex(checksum).ok().map(Expected::Sha512),
            _ => None,
        }
    }

    /// The inverse of its text: `sha256:…`.
    pub fn parse(digest: &str) -> Option<Expected> {
        let (algorithm, checksum) = digest.split_once(':')?;
        Expected::new(algorithm, checksum)
    }

    /// The SHA-256 of `body`.
    pub fn sha256(body: &[u8]) -> Expected {
        Expected::Sha256(Sha256::digest(body).into())
    }

    /// Whether `body` is what was expected.
    pub fn is_of(&self, body: &[u8]) -> bool {
        let mut verifier = self.verifier();
        verifier.update(body);
        verifier.found() == *self
    }

    /// For a body that comes in pieces.
    pub fn verifier(&self) -> Verifier {
        match self {
            Expected::Sha256(_) => Verifier::Sha256(Sha256::new()),
            Expected::Sha512(_) => Verifier::Sha512(Sha512::new()),
        }
    }
}

/// Digests a body by the algorithm of what is expected of it.
pub enum Verifier {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Verifier {
    pub fn update(&mut self, piece: &[u8]) {
        match self {
            Verifier::Sha256(digest) => digest.update(piece),
            Verifier::Sha512(digest) => digest.update(piece),
        }
    }

    /// What the body turned out to be.
    pub fn found(self) -> Expected {
        match self {
            Verifier::Sha256(digest) => Expected::Sha256(digest.finalize().into()),
            Verifier::Sha512(digest) => Expected::Sha512(digest.finalize().into()),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Expected::Sha256(digest) => write!(f, "sha256:{}", hex::encode(digest)),
            Expected::Sha512(digest) => write!(f, "sha512:{}", hex::encode(digest)),
        }
    }
}
