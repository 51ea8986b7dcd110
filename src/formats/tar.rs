//! Reads a tar archive (POSIX ustar, GNU, pax) as it comes: the names of its files, and what is in them.

/// Archives are made of blocks.
const BLOCK: usize = 512;
/// Where in a header stand the name, the size, the type and the checksum.
const NAME: std::ops::Range<usize> = 0..100;
const SIZE: std::ops::Range<usize> = 124..136;
const KIND: usize = 156;
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// Types of what only says more of the entry behind it.
const EXTENSIONS: &[u8] = b"xgLK";

/// What is read.
pub(super) enum Part<'a> {
    /// An entry begins, of whatever type.
    Entry(&'a str),
    /// The next piece of what is in it.
    Content(&'a [u8]),
}

/// The reader. Zeroes between entries are skipped: archives may stand one behind another.
#[derive(Default)]
pub(super) struct Tar {
    /// The begun header.
    header: Vec<u8>,
    /// What is left of the entry's content, and of the padding behind it.
    content: u64,
    padding: u64,
    /// Whether the content is that of an extension.
    is_extension: bool,
    /// What came is no archive; nothing more is read.
    is_broken: bool,
}

impl Tar {
    /// Takes the next piece.
    pub(super) fn write(&mut self, mut bytes: &[u8], take: &mut dyn FnMut(Part<'_>)) {
        while !bytes.is_empty() && !self.is_broken {
            if self.content > 0 {
                let (piece, rest) = bytes.split_at(at_most(self.content, bytes));
                if !self.is_extension {
                    take(Part::Content(piece));
                }
                self.content -= piece.len() as u64;
                bytes = rest;
            } else if self.padding > 0 {
                let skipped = at_most(self.padding, bytes);
                self.padding -= skipped as u64;
                bytes = &bytes[skipped..];
            } else {
                let (piece, rest) = bytes.split_at((BLOCK - self.header.len()).min(bytes.len()));
                self.header.extend_from_slice(piece);
                bytes = rest;
                if self.header.len() == BLOCK {
                    self.begin(take);
                    self.header.clear();
                }
            }
        }
    }

    fn begin(&mut self, take: &mut dyn FnMut(Part<'_>)) {
        let header = self.header.as_slice();
        if header.iter().all(|byte| *byte == 0) {
            return;
        }
        let is_right = number(&header[CHECKSUM]) == Some(checksum(header));
        let Some(size) = number(&header[SIZE]).filter(|_| is_right) else {
            self.is_broken = true;
            return;
        };
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        self.is_extension = EXTENSIONS.contains(&header[KIND]);
        if !self.is_extension {
            let name = header[NAME].split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            take(Part::Entry(name.strip_prefix("./").unwrap_or(&name)));
        }
    }
}

fn at_most(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

/// Octal digits, between spaces and zero bytes; GNU writes what is too long for that in binary.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let (head, tail) = field.split_at(field.len().checked_sub(8)?);
        let is_small = head.iter().skip(1).all(|byte| *byte == 0) && head.first() == Some(&0x80);
        return Some(u64::from_be_bytes(tail.try_into().ok()?)).filter(|_| is_small);
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    match text.is_empty() {
        true => Some(0),
        false => u64::from_str_radix(text, 8).ok(),
    }
}

/// The sum of the header's bytes, those of the sum itself taken for spaces.
fn checksum(header: &[u8]) -> u64 {
    let bytes = header.iter().enumerate();
    let sum = bytes.map(|(at, byte)| match CHECKSUM.contains(&at) {
        true => u64::from(b' '),
        false => u64::from(*byte),
    });
    sum.sum()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::formats::testing::{cut, cuts};

    /// An entry as archives have it, of this type.
    pub(in crate::formats) fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[SIZE].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[KIND] = kind;
        let sum = checksum(&header);
        header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header.extend_from_slice(content);
        header.resize(header.len().next_multiple_of(BLOCK), 0);
        header
    }

    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, Vec<u8>)> {
        let (mut tar, mut files) = (Tar::default(), Vec::<(String, Vec<u8>)>::new());
        for piece in pieces {
            tar.write(piece, &mut |part| match part {
                Part::Entry(name) => files.push((name.to_owned(), Vec::new())),
                Part::Content(piece) => files.last_mut().unwrap().1.extend_from_slice(piece),
            });
        }
        files
    }

    #[test]
    fn what_says_more_of_an_entry_is_none() {
        let archive = [
            entry("PaxHeaders/a", b'x', b"12 path=abcd\n"),
            entry("./a", b'0', b"content of a"),
            entry("b/", b'5', b""),
            vec![0; 2 * BLOCK],
            entry("c", 0, &[7; 1025]),
        ];
        let files = read([archive.concat().as_slice()]);
        assert_eq!(
            files,
            [
                ("a".to_owned(), b"content of a".to_vec()),
                ("b/".to_owned(), Vec::new()),
                ("c".to_owned(), vec![7; 1025]),
            ]
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(number(b"00000000017\0"), Some(15));
        assert_eq!(number(b"       17 \0\0"), Some(15));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02"), Some(258));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"00000000018\0"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            files in proptest::collection::vec(("[a-zA-Z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..1500)), 0..5),
            at in cuts(),
        ) {
            let archive: Vec<u8> = files.iter().flat_map(|(name, content)| entry(name, b'0', content)).collect();
            prop_assert_eq!(read(cut(&archive, &at)), files);
        }

        #[test]
        fn no_bytes_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            size in "[0-7]{11}",
            at in cuts(),
        ) {
            let mut begun = entry("a", b'0', b"");
            begun[SIZE].copy_from_slice(format!("{size}\0").as_bytes());
            let sum = checksum(&begun);
            begun[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            for bytes in [bytes.clone(), [begun, bytes].concat()] {
                prop_assert_eq!(read(cut(&bytes, &at)), read([bytes.as_slice()]));
            }
        }
    }
}
