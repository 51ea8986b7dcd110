//! The digests of a body that comes in pieces: its SHA-256, and what else is asked for.

use std::fmt;

use md5::Md5;
use sha1_smol::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

/// A digest by which a client names what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Sha512,
    /// For clients that know no better: it tells accidents, not attacks.
    Sha1,
    /// For clients that know no better: it tells accidents, not attacks.
    Md5,
}

impl Algorithm {
    /// The length of its digests in bytes.
    pub fn length(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
            Algorithm::Sha1 => 20,
            Algorithm::Md5 => 16,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Sha512 => "SHA-512",
            Algorithm::Sha1 => "SHA-1",
            Algorithm::Md5 => "MD5",
        })
    }
}

/// Digests a body.
#[derive(Clone)]
pub struct Digester {
    sha256: Sha256,
    sha512: Option<Sha512>,
    sha1: Option<Sha1>,
    md5: Option<Md5>,
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digester").finish_non_exhaustive()
    }
}

impl Digester {
    /// By SHA-256, and by those of `algorithms`.
    pub fn new(algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        let mut digester = Digester {
            sha256: Sha256::new(),
            sha512: None,
            sha1: None,
            md5: None,
        };
        for algorithm in algorithms {
            match algorithm {
                Algorithm::Sha256 => {}
                Algorithm::Sha512 => digester.sha512 = Some(Sha512::new()),
                Algorithm::Sha1 => digester.sha1 = Some(Sha1::new()),
                Algorithm::Md5 => digester.md5 = Some(Md5::new()),
            }
        }
        digester
    }

    pub fn update(&mut self, piece: &[u8]) {
        self.sha256.update(piece);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(piece);
        }
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(piece);
        }
        if let Some(md5) = &mut self.md5 {
            md5.update(piece);
        }
    }

    /// The SHA-256 of all pieces so far.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256.clone().finalize().into()
    }

    /// The digest of all pieces so far; `None` for an algorithm that was not asked for.
    pub fn by(&self, algorithm: Algorithm) -> Option<Vec<u8>> {
        match algorithm {
            Algorithm::Sha256 => Some(self.sha256().to_vec()),
            Algorithm::Sha512 => self.sha512.clone().map(|sha512| sha512.finalize().to_vec()),
            Algorithm::Sha1 => self.sha1.as_ref().map(|sha1| sha1.digest().bytes().to_vec()),
            Algorithm::Md5 => self.md5.clone().map(|md5| md5.finalize().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digests_of_abc() {
        let all = [Algorithm::Sha256, Algorithm::Sha512, Algorithm::Sha1, Algorithm::Md5];
        let mut digester = Digester::new(all);
        digester.update(b"a");
        digester.update(b"bc");
        let hex = |algorithm| hex::encode(digester.by(algorithm).unwrap());
        assert_eq!(
            hex(Algorithm::Sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(hex(Algorithm::Sha512).starts_with("ddaf35a193617abacc417349ae204131"));
        assert_eq!(hex(Algorithm::Sha1), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(hex(Algorithm::Md5), "900150983cd24fb0d6963f7d28e17f72");
        for algorithm in all {
            assert_eq!(digester.by(algorithm).unwrap().len(), algorithm.length(), "{algorithm}");
        }
        assert_eq!(Digester::new([Algorithm::Sha256]).by(Algorithm::Md5), None);
    }
}
