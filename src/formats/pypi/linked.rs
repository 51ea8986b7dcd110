//! The HTML form of an index, read for the files that it links to and the digests in the fragments of its links (PEP 503).

use super::super::html::{Tokenizer, Value};
use super::super::links::decode_once;
use super::super::release::{Release, sha256};
use super::unescape;
use crate::cache::Expected;

/// Bytes that are read in one go: what the tokenizer writes of them is dropped.
const PIECE: usize = 64 << 10;

/// All files that the document links to. Empty where it cannot be read to its end: clients do not get it, either.
pub(super) fn releases(document: &[u8]) -> Vec<Release> {
    let (mut tokenizer, mut unused, mut found) = (Tokenizer::new(), Vec::new(), Vec::new());
    for piece in document.chunks(PIECE) {
        unused.clear();
        let read = tokenizer.write(piece, &mut unused, &mut |element, name, value| {
            if element.eq_ignore_ascii_case(b"a") && name.eq_ignore_ascii_case(b"href") {
                found.extend(release(&unescape(&String::from_utf8_lossy(value))));
            }
            Value::Kept
        });
        if read.is_err() {
            return Vec::new();
        }
    }
    found
}

/// What a link says of the file that it leads to. A folder or the document itself is none.
fn release(href: &str) -> Option<Release> {
    let (url, fragment) = href.trim().split_once('#').unwrap_or((href.trim(), ""));
    let path = url.split('?').next()?;
    let file = decode_once(path.rsplit('/').next()?);
    (!file.is_empty()).then(|| Release {
        file,
        published: None,
        digest: digest(fragment),
    })
}

/// The digest in a fragment, which may say more.
fn digest(fragment: &str) -> Option<Expected> {
    let named = |algorithm: &str| {
        let parts = fragment.split('&').filter_map(|part| part.split_once('='));
        let mut hashes = parts.filter(|(name, _)| *name == algorithm).map(|(_, hash)| hash);
        hashes.next()
    };
    let sha512 = || Expected::new("sha512", &named("sha512")?.to_ascii_lowercase());
    named("sha256").and_then(sha256).or_else(sha512)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn links_name_files_and_their_digests() {
        let hex = "ab".repeat(32);
        let long = "cd".repeat(64);
        let page = format!(
            "<!DOCTYPE html><html><body><h1>Links</h1>\n<a data-yanked=\"\" href=\"../a/six-1.0.tar.gz#sha256={}\">six</a>\n\
             <A HREF='https://f/six%2B1.whl?x=/y.whl#egg=six&amp;sha256={hex}'>six</A><a href=six-3.zip#sha512={long}>3</a>\
             <a href=\"six-4.zip#md5={hex}\">4</a><a href=\"old/\">old</a><a href=\"#top\">top</a><a name=\"x\">x</a>\
             <link href=\"style.css\"><!-- <a href=\"no.zip\"></a> --></body></html>",
            hex.to_uppercase()
        );
        let found: Vec<(String, Option<String>)> = releases(page.as_bytes())
            .into_iter()
            .map(|release| (release.file, release.digest.map(|digest| digest.to_string())))
            .collect();
        let sha256 = Some(format!("sha256:{hex}"));
        assert_eq!(
            found,
            [
                ("six-1.0.tar.gz".to_owned(), sha256.clone()),
                ("six+1.whl".to_owned(), sha256),
                ("six-3.zip".to_owned(), Some(format!("sha512:{long}"))),
                ("six-4.zip".to_owned(), None),
            ]
        );
    }

    proptest! {
        #[test]
        fn each_file_keeps_its_own_digest(digests in prop::collection::vec(any::<[u8; 32]>(), 0..40), padding in 0_usize..70_000) {
            let mut page = format!("<html><body><p>{}</p>", "x".repeat(padding));
            for (at, digest) in digests.iter().enumerate() {
                page.push_str(&format!("<a href=\"/f/a-{at}.zip#sha256={}\">a-{at}.zip</a><br>\n", hex::encode(digest)));
            }
            let found = releases(page.as_bytes());
            prop_assert_eq!(found.len(), digests.len());
            for (at, (found, digest)) in found.iter().zip(&digests).enumerate() {
                prop_assert_eq!(&found.file, &format!("a-{at}.zip"));
                prop_assert_eq!(&found.digest, &Some(Expected::Sha256(*digest)));
            }
        }

        #[test]
        fn nothing_panics(page in "[<>a-z =\"'#&;/-]{0,200}") {
            let _ = releases(page.as_bytes());
        }
    }
}
