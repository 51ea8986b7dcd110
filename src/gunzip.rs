//! Decodes gzip (RFC 1952) as it comes: one member after another, and what stands behind the last one is nothing. Some
//! servers send padding or a line break there, and clients do not mind.

use std::io::{Result, Write};

use flate2::write::GzDecoder;

/// What a member begins with (RFC 1952 section 2.3.1).
pub const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Decodes one member, and knows where it ends.
pub(crate) struct Member {
    decoder: Box<GzDecoder<Vec<u8>>>,
    is_over: bool,
}

impl Default for Member {
    fn default() -> Self {
        Member {
            decoder: Box::new(GzDecoder::new(Vec::new())),
            is_over: false,
        }
    }
}

impl Member {
    /// Takes the next piece; how much of it belongs to the member, which is all of it unless that is over.
    ///
    /// # Errors
    /// What was written is no gzip, or damaged.
    pub(crate) fn write(&mut self, input: &[u8]) -> Result<usize> {
        let mut taken = 0;
        while taken < input.len() && !self.is_over {
            match self.decoder.write(&input[taken..])? {
                0 => self.end()?,
                more => taken += more,
            }
        }
        Ok(taken)
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// The member ends in the middle.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.is_over = true;
        self.decoder.try_finish()
    }

    /// Whether something stands behind it: the last byte of a member does not tell that it is the last.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// What has been decoded since the last call.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.decoder.get_mut())
    }
}

enum State {
    Member(Member),
    /// Behind a member; whether the first byte of another has come.
    Between(bool),
    Over,
}

/// The decoder.
pub(crate) struct Gunzip {
    state: State,
    out: Vec<u8>,
}

impl Gunzip {
    pub(crate) fn new() -> Self {
        Gunzip {
            state: State::Member(Member::default()),
            out: Vec::new(),
        }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// What was written is no gzip, or damaged.
    pub(crate) fn write(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some(&first) = input.first() {
            match &mut self.state {
                State::Member(member) => {
                    let taken = member.write(input)?;
                    input = &input[taken..];
                    self.out.append(&mut member.take());
                    if member.is_over() {
                        self.state = State::Between(false);
                    }
                }
                State::Between(false) if first == GZIP[0] => {
                    input = &input[1..];
                    self.state = State::Between(true);
                }
                State::Between(true) if first == GZIP[1] => {
                    let mut member = Member::default();
                    member.write(&GZIP[..1])?;
                    self.state = State::Member(member);
                }
                State::Between(_) => self.state = State::Over,
                State::Over => break,
            }
        }
        Ok(())
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// The gzip ends in the middle.
    pub(crate) fn end(&mut self) -> Result<()> {
        if let State::Member(member) = &mut self.state {
            member.end()?;
            self.out.append(&mut member.take());
        }
        Ok(())
    }

    /// How much waits to be taken.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// What has been decoded since the last call.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }
}

/// Decodes the whole, if it is right and comes to no more than `most` bytes.
pub(crate) fn gunzip(bytes: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut decoder = Gunzip::new();
    // In small steps: a bomb's next kilobytes can be megabytes.
    for step in bytes.chunks(1 << 10) {
        decoder.write(step).ok()?;
        if decoder.len() > most {
            return None;
        }
    }
    decoder.end().ok()?;
    (decoder.len() <= most).then(|| decoder.take())
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<u8>> {
        let mut decoder = Gunzip::new();
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.write(piece)?;
            out.append(&mut decoder.take());
        }
        decoder.end()?;
        out.append(&mut decoder.take());
        Ok(out)
    }

    #[test]
    fn what_stands_behind_the_last_member_is_nothing() {
        let text = b"some text, some text".repeat(100);
        let (one, two) = (gzip(&text), gzip(b"more"));
        let whole = [text.as_slice(), b"more"].concat();
        for behind in [
            &b""[..],
            b"\0",
            &[0; 1000],
            b"\r\n",
            b"\x1f",
            b"\x1f\x1f\x8b",
            b"x\x1f\x8b",
            b"\x8b",
        ] {
            for piece in [1, 2, 7, 1 << 20] {
                assert_eq!(decode(&[&one, behind].concat(), piece).unwrap(), text, "{behind:?}");
                assert_eq!(
                    decode(&[&one, &two, behind].concat(), piece).unwrap(),
                    whole,
                    "{behind:?}"
                );
            }
            assert_eq!(gunzip(&[&one, behind].concat(), text.len()).unwrap(), text);
            assert_eq!(gunzip(&[&one, behind].concat(), text.len() - 1), None);
        }
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        let one = gzip(b"some text");
        for cut in 0..one.len() {
            assert!(decode(&one[..cut], 1 << 20).is_err(), "{cut}");
        }
        let two = [one.as_slice(), &one[..one.len() - 1]].concat();
        assert!(decode(&two, 1).is_err());
        for at in [0, 1, 12, one.len() - 5] {
            let mut wrong = one.clone();
            wrong[at] ^= 0xff;
            assert!(decode(&wrong, 3).is_err(), "{at}");
        }
    }
}
