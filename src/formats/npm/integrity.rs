//! `dist.integrity`: digests as Subresource Integrity writes them (<https://www.w3.org/TR/SRI/>), several of them with spaces
//! between, each with options behind a `?`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cache::Expected;

/// The digest by the strongest algorithm that can be verified here. `None`: there is none, or several by that algorithm, of which
/// any may be that of the file.
pub(super) fn strongest(integrity: &str) -> Option<Expected> {
    let read: Vec<Expected> = integrity.split_ascii_whitespace().filter_map(one).collect();
    let is_sha512 = |digest: &&Expected| matches!(digest, Expected::Sha512(_));
    let mut strong: Vec<&Expected> = read.iter().filter(is_sha512).collect();
    if strong.is_empty() {
        strong.extend(&read);
    }
    let first = *strong.first()?;
    strong.iter().all(|digest| *digest == first).then(|| first.clone())
}

fn one(text: &str) -> Option<Expected> {
    let (algorithm, digest) = text.split('?').next()?.split_once('-')?;
    let digest = STANDARD.decode(digest).ok()?;
    match algorithm {
        "sha512" => digest.try_into().ok().map(|digest| Expected::Sha512(Box::new(digest))),
        "sha256" => digest.try_into().ok().map(Expected::Sha256),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sri(digest: &Expected) -> String {
        match digest {
            Expected::Sha256(digest) => format!("sha256-{}", STANDARD.encode(digest)),
            Expected::Sha512(digest) => format!("sha512-{}", STANDARD.encode(digest.as_slice())),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_cannot_be_verified_is_none() {
        let right = sri(&Expected::Sha512(Box::new([7; 64])));
        let short = format!("sha512-{}", STANDARD.encode([7; 63]));
        let capital = right.replacen("sha512", "SHA512", 1);
        for text in [
            "",
            "sha512",
            "sha512-",
            "sha512-!",
            "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
            &short,
            &capital,
        ] {
            assert_eq!(strongest(text), None, "{text}");
        }
        let other = sri(&Expected::Sha512(Box::new([8; 64])));
        assert_eq!(strongest(&format!("{right} {other}")), None);
        assert_eq!(
            strongest(&format!("{right} {short}\t{right}?ct=a")),
            Some(Expected::Sha512(Box::new([7; 64])))
        );
    }

    proptest! {
        #[test]
        fn the_strongest_counts(short: [u8; 32], low: [u8; 32], high: [u8; 32], weaker_first: bool) {
            let long: [u8; 64] = [low, high].concat().try_into().unwrap();
            let (weak, strong) = (Expected::Sha256(short), Expected::Sha512(Box::new(long)));
            let (weak_text, strong_text) = (sri(&weak), sri(&strong));
            let both = match weaker_first {
                true => format!("{weak_text} {strong_text}"),
                false => format!("{strong_text} {weak_text}"),
            };
            prop_assert_eq!(strongest(&both), Some(strong.clone()));
            prop_assert_eq!(strongest(&weak_text), Some(weak));
            prop_assert_eq!(strongest(&strong_text), Some(strong));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,80}") {
            let _ = strongest(&text);
        }
    }
}
