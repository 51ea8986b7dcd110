//! `APKINDEX.tar.gz`, read while it comes: the packages of a folder, with what each must turn out to be.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{INDEX, segments};
use crate::cache::Expected;
use crate::formats::IndexError;
use crate::formats::release::{Release, TellingReader, Told};
use crate::formats::tar::{Part, Tar};
use crate::formats::unpack::Unpack;

/// The entry of the archive that holds the records.
const RECORDS: &str = "APKINDEX";
/// The longest line of which something is read: those that matter are short.
const MAX_LINE: usize = 4096;

/// Reads an index.
pub(super) struct Packages {
    unpack: Unpack,
    tar: Tar,
    records: Records,
}

impl Packages {
    /// For the document under this decoded path.
    pub(super) fn new(path: &str) -> Self {
        Packages {
            unpack: Unpack::default(),
            tar: Tar::default(),
            records: Records {
                folder: path.strip_suffix(INDEX).unwrap_or_default().to_owned(),
                is_open: false,
                line: Vec::new(),
                record: Record::default(),
            },
        }
    }
}

impl TellingReader for Packages {
    fn write(&mut self, piece: &[u8], told: &mut Vec<Told>) -> Result<(), IndexError> {
        let (tar, records) = (&mut self.tar, &mut self.records);
        self.unpack.write(piece, &mut |piece| {
            tar.write(piece, &mut |part| records.read(&part, told))
        })
    }

    fn end(&mut self, told: &mut Vec<Told>) -> Result<(), IndexError> {
        let (tar, records) = (&mut self.tar, &mut self.records);
        let ended = self
            .unpack
            .end(&mut |piece| tar.write(piece, &mut |part| records.read(&part, told)));
        self.records.close(told);
        ended
    }
}

/// Lines of a letter, a colon and a value; an empty line ends a record.
struct Records {
    /// What the paths of the packages begin with.
    folder: String,
    /// Whether the entry that is being read holds them.
    is_open: bool,
    /// The begun line.
    line: Vec<u8>,
    record: Record,
}

/// A package.
#[derive(Default)]
struct Record {
    checksum: String,
    name: String,
    version: String,
}

impl Records {
    fn read(&mut self, part: &Part<'_>, told: &mut Vec<Told>) {
        match part {
            Part::Entry(name) => {
                self.close(told);
                self.is_open = *name == RECORDS;
            }
            Part::Content(piece) if self.is_open => {
                let mut lines = piece.split(|byte| *byte == b'\n');
                self.add(lines.next().unwrap_or_default());
                for line in lines {
                    self.end_line(told);
                    self.add(line);
                }
            }
            Part::Content(_) => {}
        }
    }

    fn add(&mut self, piece: &[u8]) {
        let room = MAX_LINE - self.line.len();
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    fn end_line(&mut self, told: &mut Vec<Told>) {
        let line = String::from_utf8_lossy(&self.line);
        let line = line.trim_end_matches('\r');
        let field = match line.split_once(':') {
            Some(("C", value)) => Some((&mut self.record.checksum, value)),
            Some(("P", value)) => Some((&mut self.record.name, value)),
            Some(("V", value)) => Some((&mut self.record.version, value)),
            _ => None,
        };
        if let Some((field, value)) = field {
            value.clone_into(field);
        }
        if line.is_empty() {
            let record = std::mem::take(&mut self.record);
            told.extend(record.told(&self.folder));
        }
        self.line.clear();
    }

    /// The entry has ended, and what it holds with it.
    fn close(&mut self, told: &mut Vec<Told>) {
        if self.is_open {
            self.end_line(told);
            let record = std::mem::take(&mut self.record);
            told.extend(record.told(&self.folder));
            self.is_open = false;
        }
    }
}

impl Record {
    fn told(self, folder: &str) -> Option<Told> {
        let is_named = !self.name.is_empty() && !self.version.is_empty();
        is_named.then(|| {
            Told::File(Release {
                file: format!("{folder}{}-{}.apk", self.name, self.version),
                published: None,
                digest: digest(&self.checksum).map(segments::vouched),
            })
        })
    }
}

/// `Q1` and an SHA-1, `Q2` and an SHA-256, in base64.
fn digest(checksum: &str) -> Option<Expected> {
    let (kind, digest) = checksum.split_at_checked(2)?;
    let digest = STANDARD.decode(digest).ok()?;
    match kind {
        "Q1" => digest.try_into().ok().map(Expected::Sha1),
        "Q2" => digest.try_into().ok().map(Expected::Sha256),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::formats::tar::tests::entry;
    use crate::formats::testing::{cut, cuts};

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn told<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Release>, Result<(), IndexError>) {
        let (mut reader, mut told) = (Packages::new("main/x86_64/APKINDEX.tar.gz"), Vec::new());
        let mut pieces = pieces.into_iter();
        let read = pieces.try_for_each(|piece| reader.write(piece, &mut told));
        let read = read.and_then(|()| reader.end(&mut told));
        let files = told.into_iter().map(|told| match told {
            Told::File(release) => release,
            Told::Index(path) => panic!("{path}"),
        });
        (files.collect(), read)
    }

    /// A signed index as `apk index` and `abuild-sign` make it.
    fn index(records: &str) -> Vec<u8> {
        let signature = entry(".SIGN.RSA.me.rsa.pub", b'0', b"signature");
        let archive = [
            entry("DESCRIPTION", b'0', b"C:Q1none\nP:none\nV:1\n\n"),
            entry("APKINDEX", b'0', records.as_bytes()),
            vec![0; 1024],
        ];
        [gzip(&signature), gzip(&archive.concat())].concat()
    }

    #[test]
    fn all_checksums_that_count_are_read() {
        let (sha1, sha256) = (STANDARD.encode([1; 20]), STANDARD.encode([2; 32]));
        let records = format!(
            "C:Q1{sha1}\nP:a\nV:1-r0\nA:x86_64\nt:1700000000\nD:so:libc.musl-x86_64.so.1\n\n\
             P:b\nV:2-r1\nC:Q2{sha256}\n\nC:Q1{sha256}\nP:c\nV:1\n\nC:Q3{sha1}\nP:d\nV:1\n\nP:e\n\nV:1\nP:f\np:{}\n",
            "x".repeat(100_000)
        );
        let index = index(&records);
        let (releases, read) = told([index.as_slice()]);
        read.unwrap();
        let said = releases.into_iter().map(|release| (release.file, release.digest));
        let named = |name: &str, digest| (format!("main/x86_64/{name}.apk"), digest);
        let wanted = [
            named("a-1-r0", Some(segments::vouched(Expected::Sha1([1; 20])))),
            named("b-2-r1", Some(segments::vouched(Expected::Sha256([2; 32])))),
            named("c-1", None),
            named("d-1", None),
            named("f-1", None),
        ];
        assert_eq!(said.collect::<Vec<_>>(), wanted);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            packages in proptest::collection::vec(("[a-z0-9+_.-]{1,30}", "[0-9]{1,3}-r[0-9]", any::<[u8; 20]>()), 0..20),
            at in cuts(),
        ) {
            let records: String = packages
                .iter()
                .map(|(name, version, digest)| format!("C:Q1{}\nP:{name}\nV:{version}\nS:1\n\n", STANDARD.encode(digest)))
                .collect();
            let index = index(&records);
            let (read, end) = told(cut(&index, &at));
            end.unwrap();
            let written = packages.into_iter().map(|(name, version, digest)| Release {
                file: format!("main/x86_64/{name}-{version}.apk"),
                published: None,
                digest: Some(segments::vouched(Expected::Sha1(digest))),
            });
            prop_assert_eq!(read, written.collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), packing in 0..3, at in cuts()) {
            let bytes = match packing {
                0 => bytes,
                1 => gzip(&entry("APKINDEX", b'0', &bytes)),
                _ => [gzip(b""), bytes].concat(),
            };
            let _ = told(cut(&bytes, &at));
        }
    }
}
