//! Where a chunked body ends (RFC 9112 section 7.1), read as strictly as it is written.

/// Digits of a chunk's size: more would be longer than any body.
const MOST_DIGITS: u8 = 15;
/// Extensions of one chunk, and all trailers together: nobody here reads them.
const LONGEST_LINES: u16 = 8 << 10;

/// The framing is not that of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the size, after so many digits.
    Size(u8),
    /// Behind the size, before the line's end.
    Extension,
    /// Behind the CR of the size's line.
    SizeEnd,
    Data,
    /// Behind the data: its CR, then its LF.
    DataEnd,
    DataLf,
    /// At the begin of a line of the trailers, which an empty one ends.
    Trailer,
    /// Within such a line.
    TrailerLine,
    TrailerLf,
    LastLf,
    Done,
}

/// A chunked body on its way.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    at: At,
    /// Of the chunk under way: its size, then what is left of it.
    left: u64,
    /// What extensions and trailers may still take.
    lines: u16,
}

impl Default for Chunks {
    fn default() -> Self {
        Chunks {
            at: At::Size(0),
            left: 0,
            lines: LONGEST_LINES,
        }
    }
}

impl Chunks {
    /// Whether the body is at its end.
    pub(super) fn are_done(&self) -> bool {
        self.at == At::Done
    }

    /// Takes what is the body's of `raw`, and says how much that is.
    ///
    /// # Errors
    /// No chunked body reads like this.
    pub(super) fn take(&mut self, raw: &[u8]) -> Result<usize, Malformed> {
        let mut taken = 0;
        while taken < raw.len() && self.at != At::Done {
            if self.at == At::Data {
                let here = self.left.min((raw.len() - taken) as u64);
                taken += here as usize;
                self.left -= here;
                if self.left == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            self.at = self.step(raw[taken])?;
            taken += 1;
        }
        Ok(taken)
    }

    fn step(&mut self, byte: u8) -> Result<At, Malformed> {
        match (self.at, byte) {
            (At::Size(digits), _) if byte.is_ascii_hexdigit() && digits < MOST_DIGITS => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left * 16 + u64::from(digit);
                Ok(At::Size(digits + 1))
            }
            (At::Size(1..), b'\r') | (At::Extension, b'\r') => Ok(At::SizeEnd),
            (At::Size(1..), b';' | b' ' | b'\t') => self.line(At::Extension),
            (At::SizeEnd, b'\n') if self.left == 0 => Ok(At::Trailer),
            (At::SizeEnd, b'\n') => Ok(At::Data),
            (At::DataEnd, b'\r') => Ok(At::DataLf),
            (At::DataLf, b'\n') => {
                self.lines = LONGEST_LINES;
                Ok(At::Size(0))
            }
            (At::Trailer, b'\r') => Ok(At::LastLf),
            (At::LastLf, b'\n') => Ok(At::Done),
            (At::TrailerLine, b'\r') => Ok(At::TrailerLf),
            (At::TrailerLf, b'\n') => Ok(At::Trailer),
            (At::Extension, _) if is_text(byte) => self.line(At::Extension),
            (At::Trailer | At::TrailerLine, _) if is_text(byte) => self.line(At::TrailerLine),
            _ => Err(Malformed),
        }
    }

    /// One more byte of what nobody reads.
    fn line(&mut self, next: At) -> Result<At, Malformed> {
        self.lines = self.lines.checked_sub(1).ok_or(Malformed)?;
        Ok(next)
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(raw: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut chunks = Chunks::default();
        let taken = chunks.take(raw)?;
        Ok(chunks.are_done().then_some(taken))
    }

    #[test]
    fn ends_are_found() {
        let body = b"9\r\n{\"mode\": \r\n9;x=y\r\n\"expire\"}\r\n0\r\nX-Trailer: 1\r\n\r\n";
        assert_eq!(read(body), Ok(Some(body.len())));
        assert_eq!(read(b"0\r\n\r\nGET /"), Ok(Some(5)));
        assert_eq!(read(b"00A\r\n0123456789\r\n0\r\n\r\n"), Ok(Some(22)));
        assert_eq!(read(b"5\r\nab"), Ok(None));
        for bad in [
            "zz\r\n{}\r\n0\r\n\r\n",
            "-2\r\n{}\r\n0\r\n\r\n",
            "2\r\n{}x\r\n0\r\n\r\n",
            "2\n{}\r\n0\r\n\r\n",
            "\r\n\r\n",
            "0x2\r\n{}\r\n0\r\n\r\n",
            "2\r\r{}",
            "0\r\n\n",
            "0\r\nX: a\n\r\n",
            "0\r\nX: a\0\r\n\r\n",
            "1111111111111111\r\n",
        ] {
            assert_eq!(read(bad.as_bytes()), Err(Malformed), "{bad:?}");
        }
        let long = format!("2;{}\r\n", "x".repeat(9000));
        assert_eq!(read(long.as_bytes()), Err(Malformed));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            cut in 1..7usize,
        ) {
            let mut raw = Vec::new();
            for body in &bodies {
                raw.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
                raw.extend_from_slice(body);
                raw.extend_from_slice(b"\r\n");
            }
            raw.extend_from_slice(b"0\r\n\r\n");
            let length = raw.len();
            raw.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let mut chunks = Chunks::default();
            let mut taken = 0;
            for piece in raw.chunks(cut) {
                taken += chunks.take(piece).unwrap();
            }
            prop_assert!(chunks.are_done());
            prop_assert_eq!(taken, length);
        }
    }
}
