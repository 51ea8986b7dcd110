//! What an `.apk` of version 2 is made of: gzip members in a row, each with a piece of one tar archive
//! (<https://wiki.alpinelinux.org/wiki/Apk_spec>). First a signature, which the index says nothing of; then the control segment
//! (`.PKGINFO`, scripts), of which the index has the digest; then the data, whose SHA-256 stands in `.PKGINFO`. Digests are those
//! of the packed bytes.

use crate::cache::{Expected, Verifier, Verify, Vouched};
use crate::formats::tar::{Part, Tar};
use crate::gunzip::Member;

/// What stands in front of the name of a signature.
const SIGNATURE: &str = ".SIGN.";
const ABOUT: &str = ".PKGINFO";
/// What signature and control segment may come to, unpacked: scripts and lists are kilobytes, a bomb ends here.
const MAX_UNPACKED: u64 = 64 << 20;
/// The longest `.PKGINFO`.
const MAX_ABOUT: usize = 4 << 20;
/// What is unpacked at once: a bomb's next kilobytes can be megabytes.
const STEP: usize = 1 << 10;

/// A package whose control segment has this digest.
pub(super) fn vouched(digest: Expected) -> Expected {
    Expected::Vouched(Box::new(Vouched {
        digest,
        part: "its control segment",
        verify: |digest| Box::new(Segments::new(digest)),
    }))
}

/// Compares a package with the digest of its control segment.
struct Segments {
    control: Expected,
    stage: Stage,
}

enum Stage {
    /// In the signature, or in the control segment.
    Head(Box<Head>),
    /// Behind the control segment.
    Data(Box<Verifier>),
    /// What is wrong.
    Wrong(String),
}

impl Segments {
    fn new(control: &Expected) -> Self {
        Segments {
            stage: Stage::Head(Box::new(Head::new(control))),
            control: control.clone(),
        }
    }
}

impl Verify for Segments {
    fn update(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            match &mut self.stage {
                Stage::Head(head) => {
                    let step = &piece[..piece.len().min(STEP)];
                    let next = match head.take(step) {
                        Ok(taken) => {
                            piece = &piece[taken..];
                            head.member.is_over().then(|| head.next(&self.control))
                        }
                        Err(found) => Some(Stage::Wrong(found)),
                    };
                    if let Some(next) = next {
                        self.stage = next;
                    }
                }
                Stage::Data(verifier) => {
                    verifier.update(piece);
                    return;
                }
                Stage::Wrong(_) => return,
            }
        }
    }

    fn end(mut self: Box<Self>) -> Result<(), String> {
        if let Stage::Head(head) = &mut self.stage {
            head.end()?;
            self.stage = head.next(&self.control);
        }
        match self.stage {
            Stage::Data(verifier) => verifier.end().map_err(|wrong| {
                // What the control segment says is what it must be by then, or stands for the whole.
                format!(
                    "behind its signature {}, where {} was to come",
                    wrong.found, wrong.expected
                )
            }),
            Stage::Wrong(found) => Err(found),
            Stage::Head(_) => Err("no control segment".to_owned()),
        }
    }
}

/// The first members.
struct Head {
    member: Member,
    /// Of the packed bytes of this member.
    packed: Verifier,
    tar: Tar,
    unpacked: u64,
    /// Whether something else than a signature is in it.
    is_control: bool,
    /// Whether the entry that is being read is that with the digest.
    is_about: bool,
    about: Vec<u8>,
}

impl Head {
    fn new(control: &Expected) -> Self {
        Head {
            member: Member::default(),
            packed: control.verifier(),
            tar: Tar::default(),
            unpacked: 0,
            is_control: false,
            is_about: false,
            about: Vec::new(),
        }
    }

    /// How much of `step` belongs to this member.
    fn take(&mut self, step: &[u8]) -> Result<usize, String> {
        let taken = self.member.write(step).map_err(|error| no_package(&error))?;
        self.packed.update(&step[..taken]);
        self.read()?;
        Ok(taken)
    }

    fn end(&mut self) -> Result<(), String> {
        self.member.end().map_err(|error| no_package(&error))?;
        self.read()
    }

    /// Reads what was unpacked.
    fn read(&mut self) -> Result<(), String> {
        let unpacked = self.member.take();
        self.unpacked += unpacked.len() as u64;
        let (is_control, is_about, about) = (&mut self.is_control, &mut self.is_about, &mut self.about);
        self.tar.write(&unpacked, &mut |part| match part {
            Part::Entry(name) => {
                *is_control |= !name.starts_with(SIGNATURE);
                *is_about = name == ABOUT;
            }
            Part::Content(piece) if *is_about => about.extend_from_slice(piece),
            Part::Content(_) => {}
        });
        match self.unpacked > MAX_UNPACKED || self.about.len() > MAX_ABOUT {
            true => Err("a control segment that is too long to be one".to_owned()),
            false => Ok(()),
        }
    }

    /// What comes behind this member.
    fn next(&mut self, control: &Expected) -> Stage {
        if !self.is_control {
            let mut next = Head::new(control);
            // All signatures together are as short.
            next.unpacked = self.unpacked;
            return Stage::Head(Box::new(next));
        }
        let packed = std::mem::replace(&mut self.packed, control.verifier());
        match data_digest(&self.about) {
            // Of old packages the digest is that of all that is behind the signature.
            None => Stage::Data(Box::new(packed)),
            Some(data) => match (packed.end(), data) {
                (Err(wrong), _) => Stage::Wrong(wrong.found),
                (Ok(()), Some(data)) => Stage::Data(Box::new(data.verifier())),
                (Ok(()), None) => Stage::Wrong("a `datahash` that is no SHA-256".to_owned()),
            },
        }
    }
}

fn no_package(error: &std::io::Error) -> String {
    format!("no such package ({error})")
}

/// The digest of the data by `.PKGINFO`; the outer `None` where it names none.
fn data_digest(about: &[u8]) -> Option<Option<Expected>> {
    let text = String::from_utf8_lossy(about);
    let mut fields = text.lines().filter_map(|line| line.split_once('='));
    let (_, digest) = fields.find(|(name, _)| name.trim() == "datahash")?;
    Some(Expected::new("sha256", digest.trim()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;
    use sha1_smol::Sha1;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::formats::tar::tests::entry;
    use crate::formats::testing::{cut, cuts};

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// What `abuild` makes: signature, control segment and data.
    fn segments(content: &[u8], data_digest: Option<&str>) -> [Vec<u8>; 3] {
        let data = gzip(&[entry("usr/", b'5', b""), entry("usr/a", b'0', content), vec![0; 1024]].concat());
        let about = match data_digest {
            Some("") => format!(
                "pkgname = a\npkgver = 1-r0\ndatahash = {}\n",
                hex::encode(Sha256::digest(&data))
            ),
            Some(digest) => format!("pkgname = a\ndatahash = {digest}\n"),
            None => "pkgname = a\n".to_owned(),
        };
        let control = [
            entry("./PaxHeaders/.PKGINFO", b'x', b"20 atime=1700000000\n"),
            entry(".PKGINFO", b'0', about.as_bytes()),
            entry(".pre-install", b'0', b"#!/bin/sh\ndatahash = 0\n"),
        ];
        let signature = entry(".SIGN.RSA.me.rsa.pub", b'0', &[1; 512]);
        [gzip(&signature), gzip(&control.concat()), data]
    }

    fn digests(covered: &[u8]) -> [Expected; 2] {
        [
            Expected::Sha1(Sha1::from(covered).digest().bytes()),
            Expected::Sha256(Sha256::digest(covered).into()),
        ]
    }

    fn verify<'a>(digest: &Expected, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(), String> {
        let mut verifier = vouched(digest.clone()).verifier();
        for piece in pieces {
            verifier.update(piece);
        }
        verifier.end().map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn only_what_the_index_and_the_control_segment_say_is_right() {
        let [signature, control, data] = segments(b"content", Some(""));
        let [_, _, other] = segments(b"contents", Some(""));
        for digest in digests(&control) {
            let is_right = |parts: &[&[u8]]| verify(&digest, [parts.concat().as_slice()]).is_ok();
            assert!(is_right(&[&signature, &control, &data]));
            // Whoever signs it, or not.
            assert!(is_right(&[&control, &data]));
            assert!(is_right(&[&signature, &signature, &control, &data]));
            for wrong in [
                &[signature.as_slice(), &control, &other][..],
                &[&signature, &control, &data, b"\0"],
                &[&signature, &control, &data, &data],
                &[&signature, &control, &control, &data],
                &[&signature, &control],
                &[&signature],
                &[&control, &signature, &data],
                &[&signature, &data],
                &[b"x", &control, &data],
                &[b""],
            ] {
                assert!(!is_right(wrong));
            }
        }
        let wrong = verify(
            &digests(b"x")[0],
            [[signature.as_slice(), &control, &data].concat().as_slice()],
        );
        let (wanted, found) = (digests(b"x")[0].to_string(), digests(&control)[0].to_string());
        let wrong = wrong.unwrap_err();
        assert!(wrong.contains(&wanted) && wrong.contains(&found), "{wrong}");
    }

    #[test]
    fn without_a_digest_of_the_data_that_of_the_whole_counts() {
        let [signature, control, data] = segments(b"content", None);
        let whole = [signature.as_slice(), &control, &data].concat();
        let [digest, _] = digests(&[control.as_slice(), &data].concat());
        assert_eq!(verify(&digest, [whole.as_slice()]), Ok(()));
        assert!(verify(&digest, [&whole[..whole.len() - 1]]).is_err());
        assert!(verify(&digests(&control)[0], [whole.as_slice()]).is_err());
        for no_digest in ["0", "none", &"AB".repeat(32)] {
            let [signature, control, data] = segments(b"content", Some(no_digest));
            let whole = [signature.as_slice(), &control, &data].concat();
            assert!(
                verify(&digests(&control)[0], [whole.as_slice()]).is_err(),
                "{no_digest}"
            );
        }
    }

    #[test]
    fn what_unpacks_to_more_than_scripts_is_none() {
        let control = gzip(&entry(".PKGINFO", b'0', &vec![b' '; MAX_ABOUT + 1]));
        let wrong = verify(&digests(&control)[0], [control.as_slice()]).unwrap_err();
        assert!(wrong.contains("too long"), "{wrong}");
        let bomb = gzip(&entry(".SIGN.a", b'0', &vec![0; MAX_UNPACKED as usize + 1]));
        let wrong = verify(&digests(&control)[0], [bomb.as_slice()]).unwrap_err();
        assert!(wrong.contains("too long"), "{wrong}");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference_and_each_byte_counts(
            content in proptest::collection::vec(any::<u8>(), 0..3000),
            at in cuts(),
            flipped: prop::sample::Index,
            bit in 0..8_u32,
        ) {
            let [signature, control, data] = segments(&content, Some(""));
            let mut whole = [signature.as_slice(), &control, &data].concat();
            let [digest, _] = digests(&control);
            prop_assert_eq!(verify(&digest, cut(&whole, &at)), Ok(()));
            let covered = whole.len() - signature.len();
            let flipped = signature.len() + flipped.index(covered);
            whole[flipped] ^= 1_u8 << bit;
            prop_assert!(verify(&digest, cut(&whole, &at)).is_err());
            prop_assert!(verify(&digest, [whole.as_slice()]).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), begin in 0..3, at in cuts()) {
            let [signature, control, _] = segments(b"", Some(""));
            let bytes = match begin {
                0 => bytes,
                1 => [signature, bytes].concat(),
                _ => [control, bytes].concat(),
            };
            prop_assert!(verify(&digests(b"")[0], cut(&bytes, &at)).is_err());
        }
    }
}
