//! What a client says of the digests of its upload: `Content-Digest` and `Repr-Digest` (RFC 9530), and the `X-Checksum-…`
//! fields that clients of repository managers send.

use hex::FromHex;
use http::{HeaderMap, HeaderName};
use sfv::{BareItem, ListEntry, Parser};

use crate::cache::{Algorithm, Digester};

/// Dictionaries of digests. The content is stored as it is, so that both mean the same.
const DICTIONARIES: [HeaderName; 2] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];
const HEXADECIMAL: [(HeaderName, Algorithm); 4] = [
    (HeaderName::from_static("x-checksum-sha256"), Algorithm::Sha256),
    (HeaderName::from_static("x-checksum-sha512"), Algorithm::Sha512),
    (HeaderName::from_static("x-checksum-sha1"), Algorithm::Sha1),
    (HeaderName::from_static("x-checksum-md5"), Algorithm::Md5),
];

/// What a body must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    pub algorithm: Algorithm,
    digest: Vec<u8>,
    field: HeaderName,
}

/// A field that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` cannot be read: {wrong}")]
pub struct Malformed {
    field: HeaderName,
    wrong: String,
}

impl Checksum {
    /// What is wrong with a body that `digester` has read; `None`: it is what was promised.
    pub fn mismatch(&self, digester: &Digester) -> Option<String> {
        let found = digester.by(self.algorithm)?;
        (found != self.digest).then(|| {
            format!(
                "`{}` says that the {} of the body is {}, and it is {}",
                self.field,
                self.algorithm,
                hex::encode(&self.digest),
                hex::encode(found)
            )
        })
    }
}

/// The checksums in `headers`. Algorithms that are not known are passed over.
///
/// # Errors
/// A field is no dictionary, or a digest is none of its algorithm.
pub fn checksums(headers: &HeaderMap) -> Result<Vec<Checksum>, Malformed> {
    let mut found = Vec::new();
    for field in DICTIONARIES {
        let mut lines = Vec::new();
        for value in headers.get_all(&field) {
            lines.push(value.as_bytes());
        }
        if lines.is_empty() {
            continue;
        }
        let malformed = |wrong: &str| Malformed {
            field: field.clone(),
            wrong: wrong.to_owned(),
        };
        let dictionary = Parser::parse_dictionary(&lines.join(&b", "[..])).map_err(malformed)?;
        for (name, member) in &dictionary {
            let algorithm = match name.as_str() {
                "sha-256" => Algorithm::Sha256,
                "sha-512" => Algorithm::Sha512,
                "sha" => Algorithm::Sha1,
                "md5" => Algorithm::Md5,
                _ => continue,
            };
            let ListEntry::Item(item) = member else {
                return Err(malformed(&format!("{name} is no byte sequence")));
            };
            let BareItem::ByteSeq(digest) = &item.bare_item else {
                return Err(malformed(&format!("{name} is no byte sequence, such as :…: in base64")));
            };
            found.push(checksum(algorithm, digest.clone(), &field)?);
        }
    }
    for (field, algorithm) in HEXADECIMAL {
        for value in headers.get_all(&field) {
            let digest = Vec::from_hex(value.as_bytes().trim_ascii()).map_err(|_| Malformed {
                field: field.clone(),
                wrong: "it is not hexadecimal".to_owned(),
            })?;
            found.push(checksum(algorithm, digest, &field)?);
        }
    }
    Ok(found)
}

fn checksum(algorithm: Algorithm, digest: Vec<u8>, field: &HeaderName) -> Result<Checksum, Malformed> {
    if digest.len() != algorithm.length() {
        return Err(Malformed {
            field: field.clone(),
            wrong: format!("a {algorithm} has {} bytes, not {}", algorithm.length(), digest.len()),
        });
    }
    Ok(Checksum {
        algorithm,
        digest,
        field: field.clone(),
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use http::HeaderValue;
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn holds(fields: &[(&'static str, &str)], body: &[u8]) -> bool {
        let checksums = checksums(&headers(fields)).unwrap();
        let mut digester = Digester::new(checksums.iter().map(|checksum| checksum.algorithm));
        digester.update(body);
        checksums.iter().all(|checksum| checksum.mismatch(&digester).is_none())
    }

    const ABC: &str = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";

    #[test]
    fn every_way_to_say_it() {
        for fields in [
            &[("content-digest", ABC)][..],
            &[("repr-digest", ABC)],
            &[
                ("content-digest", "sha-999=:AA==:;x=1, unixsum=5"),
                ("content-digest", ABC),
            ],
            &[(
                "x-checksum-sha256",
                "BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            )],
            &[("x-checksum-sha1", " a9993e364706816aba3e25717850c26c9cd0d89d ")],
            &[
                ("x-checksum-md5", "900150983cd24fb0d6963f7d28e17f72"),
                ("content-digest", ABC),
            ],
        ] {
            assert!(holds(fields, b"abc"), "{fields:?}");
        }
        assert!(!holds(&[("content-digest", ABC)], b"abd"));
        assert!(!holds(
            &[("x-checksum-md5", "900150983cd24fb0d6963f7d28e17f72")],
            b"abd"
        ));
        // One that is right excuses none that is wrong.
        assert!(!holds(
            &[("content-digest", ABC), ("x-checksum-md5", &"00".repeat(16))],
            b"abc"
        ));
        assert!(holds(&[("content-digest", "crc32=:AA==:")], b"abc"));
        assert!(holds(&[], b"abc"));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for fields in [
            ("content-digest", "sha-256=ungWv48Bz"),
            ("content-digest", "sha-256=:not base64!:"),
            ("content-digest", "sha-256=:AAAA:"),
            ("content-digest", "sha-256=\"ungW\""),
            ("content-digest", "sha-256=(:AAAA:)"),
            ("content-digest", "sha-256"),
            ("content-digest", "sha-256=:AAAA:,"),
            ("content-digest", ", sha-256"),
            ("x-checksum-sha256", "abc"),
            ("x-checksum-sha256", "00"),
            ("x-checksum-sha1", ""),
        ] {
            let error = checksums(&headers(&[fields])).unwrap_err();
            assert!(error.to_string().contains(fields.0), "{error}");
        }
    }

    proptest! {
        #[test]
        fn the_digest_of_a_body_holds_for_it_alone(body in any::<Vec<u8>>(), other in any::<Vec<u8>>(), more in "[a-z]{1,5}") {
            let digest = Sha256::digest(&body);
            let said = format!("x-{more}=?1, sha-256=:{}:;p=1", STANDARD.encode(digest));
            prop_assert!(holds(&[("content-digest", &said)], &body));
            prop_assert!(holds(&[("x-checksum-sha256", &hex::encode(digest))], &body));
            prop_assert_eq!(holds(&[("content-digest", &said)], &other), body == other);
        }

        #[test]
        fn nothing_panics(text in "[ -~]{0,60}") {
            let _ = checksums(&headers(&[("content-digest", &text), ("x-checksum-md5", &text)]));
        }
    }
}
