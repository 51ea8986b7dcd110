//! What an object in the bucket says of itself, in its user metadata: a few fields for people, and one from which the
//! object is rebuilt. S3 allows 2 KB of it, in ASCII.

use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hex::FromHex;
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use crate::cache::{Class, Described, Finished, Head, Key, Millis};
use crate::catalog::rfc3339;

/// Names and values together. The limit of S3 is 2048; some servers count the names with their prefix, some without.
const MAX_BYTES: usize = 2000;
/// No record that fits inflates to more.
const MAX_INFLATED: u64 = 64 << 10;
/// Of the field for machines; another number is another form of it.
const RECORD: &str = "x-amz-meta-artifactapi-1";

/// Kept when not all headers fit; the others only inform.
const NEEDED: [&str; 7] = [
    "content-type",
    "etag",
    "last-modified",
    "content-encoding",
    "content-disposition",
    "docker-content-digest",
    "link",
];

#[derive(Serialize, Deserialize)]
struct Compact {
    key: String,
    head: Head,
    id: u64,
    length: u64,
    sha256: String,
    immutable: bool,
    checked: Millis,
    until: Millis,
}

/// The metadata of an object, header by header. `None`: its key and most needed headers do not fit.
pub(super) fn encode(object: &Described) -> Option<Vec<(String, String)>> {
    let mut head = object.head.clone();
    head.url = without_secrets(&head.url);
    let whole = fields(object, &head);
    if whole.is_some() {
        return whole;
    }
    let mut kept = HeaderMap::new();
    for name in NEEDED {
        for value in head.headers.get_all(name) {
            kept.append(name, value.clone());
        }
    }
    head.headers = kept;
    let less = fields(object, &head);
    if less.is_some() {
        return less;
    }
    // What is long and can be missed: where it came from serves relative links only, which such a path has none of.
    head.headers.remove(header::LINK);
    fields(object, &head)
}

fn fields(object: &Described, head: &Head) -> Option<Vec<(String, String)>> {
    let compact = Compact {
        key: object.key.text.to_string(),
        head: head.clone(),
        id: object.id,
        length: object.finished.length,
        sha256: hex::encode(object.finished.sha256),
        immutable: object.class == Class::Immutable,
        checked: object.checked_at,
        until: object.fresh_until,
    };
    let json = serde_json::to_vec(&compact).ok()?;
    let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    deflated.write_all(&json).ok()?;
    let record = URL_SAFE_NO_PAD.encode(deflated.finish().ok()?);
    let remote: String = object.key.parts().remote.chars().map(visible).take(80).collect();
    let stored = i64::try_from(head.stored_at / 1000).unwrap_or(i64::MAX);
    let fields = vec![
        (RECORD.to_owned(), record),
        ("x-amz-meta-class".to_owned(), class_name(object.class).to_owned()),
        ("x-amz-meta-remote".to_owned(), remote),
        ("x-amz-meta-sha256".to_owned(), compact.sha256),
        ("x-amz-meta-stored-at".to_owned(), rfc3339(stored)),
    ];
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    (bytes <= MAX_BYTES).then_some(fields)
}

/// The object that has this metadata. `None`: it is not one of ours, or cannot be understood.
pub(super) fn decode(headers: &HeaderMap) -> Option<Described> {
    let record = URL_SAFE_NO_PAD.decode(headers.get(RECORD)?.as_bytes()).ok()?;
    let mut json = Vec::new();
    flate2::read::DeflateDecoder::new(record.as_slice())
        .take(MAX_INFLATED)
        .read_to_end(&mut json)
        .ok()?;
    let compact: Compact = serde_json::from_slice(&json).ok()?;
    let key = Key::read(&compact.key)?;
    let sha256 = FromHex::from_hex(compact.sha256).ok()?;
    Some(Described {
        key,
        head: compact.head,
        finished: Finished {
            length: compact.length,
            sha256,
        },
        id: compact.id,
        class: if compact.immutable {
            Class::Immutable
        } else {
            Class::Mutable
        },
        checked_at: compact.checked,
        fresh_until: compact.until,
    })
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Immutable => "immutable",
        Class::Mutable => "mutable",
    }
}

fn visible(c: char) -> char {
    if c.is_ascii_graphic() { c } else { '_' }
}

/// A query may hold a signature, what stands before `@` a password.
fn without_secrets(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = &url[..end];
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority = rest.find('/').unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Referent;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn object(path: &str, headers: HeaderMap) -> Described {
        Described {
            key: Key::new("pypi", path, None, "json"),
            head: Head {
                url: "https://user:secret@files.test/a/b?X-Amz-Signature=abc#frag".to_owned(),
                headers,
                content_length: Some(5),
                stored_at: 1_700_000_000_123,
                unframed: false,
                ranges: true,
                stands_for: None,
            },
            finished: Finished {
                length: 5,
                sha256: [0xab; 32],
            },
            id: u64::MAX - 1,
            class: Class::Mutable,
            checked_at: 1_700_000_000_124,
            fresh_until: u64::MAX,
        }
    }

    fn sent(fields: &[(String, String)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn comes_back_without_secrets() {
        let fields = encode(&object("simple/six/", HeaderMap::new())).unwrap();
        assert!(
            fields
                .iter()
                .any(|(name, value)| name == "x-amz-meta-stored-at" && value == "2023-11-14T22:13:20Z")
        );
        let back = decode(&sent(&fields)).unwrap();
        assert_eq!(back.head.url, "https://files.test/a/b");
        assert_eq!(back.key, Key::new("pypi", "simple/six/", None, "json"));
        assert_eq!((back.id, back.fresh_until), (u64::MAX - 1, u64::MAX));
    }

    #[test]
    fn what_only_informs_goes_first() {
        let mut noise = String::new();
        while noise.len() < 1500 {
            noise.push_str(&hex::encode(pingora_cache::key::hash_key(&noise)));
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-noise", HeaderValue::from_str(&noise).unwrap());
        let more: String = noise.chars().rev().collect();
        headers.insert("x-more", HeaderValue::from_str(&more).unwrap());
        headers.insert("etag", HeaderValue::from_static("\"1\""));
        let back = decode(&sent(&encode(&object("a", headers)).unwrap())).unwrap();
        let names: Vec<&str> = back.head.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["etag"]);
        let path = noise + &more;
        assert!(encode(&object(&path, HeaderMap::new())).is_none());
    }

    proptest! {
        #[test]
        fn whatever_fits_comes_back(
            remote in "[a-z0-9._-]{1,60}", path in "[ -~&&[^\0]]{0,500}", form in "[a-z,/+]{0,40}",
            headers in proptest::collection::vec(("x-[a-z0-9-]{1,20}", proptest::collection::vec(prop_oneof![0x20u8..0x7f, 0x80u8..=0xff], 0..40)), 0..6),
            numbers in any::<(u64, u64, u64, u64)>(), length in proptest::option::of(any::<u64>()), flags in any::<(bool, bool, bool)>(),
            referent in proptest::option::of(("sha(256|512):[0-9a-f]{64}", any::<u64>())), sha256 in any::<[u8; 32]>(),
        ) {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
            }
            let object = Described {
                key: Key::new(&remote, &path, None, &form),
                head: Head {
                    url: format!("https://host.test/{remote}"),
                    headers: map,
                    content_length: length,
                    stored_at: numbers.0,
                    unframed: flags.0,
                    ranges: flags.1,
                    stands_for: referent.map(|(digest, size)| Referent { digest, size }),
                },
                finished: Finished { length: numbers.1, sha256 },
                id: numbers.2,
                class: if flags.2 { Class::Immutable } else { Class::Mutable },
                checked_at: numbers.3,
                fresh_until: numbers.0,
            };
            let fields = encode(&object).expect("it fits");
            for (name, value) in &fields {
                prop_assert!(name.is_ascii() && value.bytes().all(|byte| byte.is_ascii_graphic()), "{name}: {value}");
            }
            prop_assert!(fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= 2048);
            let back = decode(&sent(&fields)).expect("it is understood");
            prop_assert_eq!(&back.key, &object.key);
            prop_assert_eq!(serde_json::to_value(&back.head).unwrap(), serde_json::to_value(&object.head).unwrap());
            prop_assert_eq!(back.finished, object.finished);
            prop_assert_eq!((back.id, back.class, back.checked_at, back.fresh_until),
                (object.id, object.class, object.checked_at, object.fresh_until));
        }

        #[test]
        fn garbage_is_none_of_ours(value in "[!-~]{0,200}", raw in proptest::collection::vec(any::<u8>(), 0..200), json in "\\{\"key\":\"[a-z]{0,5}\",\"sha256\":\".{0,70}\"\\}") {
            let mut headers = HeaderMap::new();
            headers.insert(RECORD, HeaderValue::from_str(&value).unwrap());
            let _ = decode(&headers);
            headers.insert(RECORD, HeaderValue::from_str(&URL_SAFE_NO_PAD.encode(&raw)).unwrap());
            let _ = decode(&headers);
            let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            deflated.write_all(json.as_bytes()).unwrap();
            headers.insert(RECORD, HeaderValue::from_str(&URL_SAFE_NO_PAD.encode(deflated.finish().unwrap())).unwrap());
            prop_assert!(decode(&headers).is_none());
        }
    }
}
