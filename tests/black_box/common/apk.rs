//! Small Alpine packages, as `abuild` puts them together, and their index.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::packages::tgz;
use super::pattern::Pattern;
use super::upstream::{File, Upstream};
use super::{hex, sha256};

/// A package of version 1.0-r0.
pub struct Apk {
    pub name: String,
    pub signature: Vec<u8>,
    pub control: Vec<u8>,
    pub data: Vec<u8>,
}

impl Apk {
    /// With noise of this length in it, another one for each seed.
    pub fn new(name: &str, seed: u64, length: u64) -> Self {
        let data = tgz(&[("usr/noise", &Pattern::new(seed, length).whole())]);
        let about = format!(
            "pkgname = {name}\npkgver = 1.0-r0\narch = x86_64\ndatahash = {}\n",
            sha256(&data)
        );
        Apk {
            name: name.to_owned(),
            signature: tgz(&[(".SIGN.RSA.me.rsa.pub", b"a signature")]),
            control: tgz(&[(".PKGINFO", about.as_bytes())]),
            data,
        }
    }

    pub fn file(&self) -> String {
        format!("{}-1.0-r0.apk", self.name)
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.signature.as_slice(), &self.control, &self.data].concat()
    }
}

/// An index of these packages, which has their digests of this kind (`Q1`, `Q2`).
pub fn index(packages: &[&Apk], kind: &str) -> Vec<u8> {
    let records: String = packages
        .iter()
        .map(|package| {
            let digest = match kind {
                "Q1" => STANDARD.encode(sha1_smol::Sha1::from(&package.control).digest().bytes()),
                _ => STANDARD.encode(Sha256::digest(&package.control)),
            };
            let (name, size) = (&package.name, package.bytes().len());
            format!("C:{kind}{digest}\nP:{name}\nV:1.0-r0\nA:x86_64\nS:{size}\nt:1700000000\n\n")
        })
        .collect();
    let signature = tgz(&[(".SIGN.RSA.me.rsa.pub", b"a signature")]);
    [
        signature,
        tgz(&[("DESCRIPTION", b"x"), ("APKINDEX", records.as_bytes())]),
    ]
    .concat()
}

/// Serves packages and their index below `folder`.
pub fn serve(up: &Upstream, folder: &str, packages: &[&Apk], kind: &str) {
    let index = index(packages, kind);
    let etag = format!("\"{}\"", &hex(&Sha256::digest(&index))[..9]);
    up.file(&format!("/{folder}/APKINDEX.tar.gz"), File::new(index).etag(&etag));
    for package in packages {
        up.file(&format!("/{folder}/{}", package.file()), File::new(package.bytes()));
    }
}
