//! The bytes of an object without its coding, piece by piece.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::{Object, ReadError, Reader};
pub use crate::gunzip::GZIP;
use crate::gunzip::Gunzip;

/// What a decoder may make of one document: a bomb ends here, a 40 MB index does not.
const MAX_DECODED: u64 = 1 << 30;
/// A decoder's output is handed on in pieces of this.
pub(super) const PIECE: usize = 64 << 10;
/// What a decoder gets at once: a bomb's next kilobytes can be megabytes.
const STEP: usize = 1 << 10;

/// Why a document cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("its gzip coding is damaged: {0}")]
    Gzip(std::io::Error),
    #[error("it decodes to more than {MAX_DECODED} bytes")]
    TooLarge,
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
}

/// A reader of an object's content. Gzip is taken off where the bytes are that, whatever the header says; other codings are not
/// looked for.
pub(super) struct Decoded {
    reader: Reader,
    decoder: Option<Gunzip>,
    coded: Bytes,
    out: Bytes,
    decoded: u64,
}

impl Decoded {
    pub(super) async fn new(object: &Arc<Object>) -> Self {
        let is_coded = object.head.content_encoding().is_some() && has_gzip_bytes(object).await;
        Decoded {
            reader: Reader::new(Arc::clone(object)),
            decoder: is_coded.then(Gunzip::new),
            coded: Bytes::new(),
            out: Bytes::new(),
            decoded: 0,
        }
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    /// The object cannot be read, its coding is damaged, or it decodes to more than a gigabyte.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, DecodeError> {
        loop {
            if !self.out.is_empty() {
                return Ok(Some(self.out.split_to(self.out.len().min(PIECE))));
            }
            let Some(decoder) = &mut self.decoder else {
                return Ok(self.reader.next().await?);
            };
            if self.coded.is_empty() {
                match self.reader.next().await? {
                    Some(piece) => self.coded = piece,
                    None => {
                        decoder.end().map_err(DecodeError::Gzip)?;
                        self.out = decoder.take().into();
                        self.decoder = None;
                        continue;
                    }
                }
            }
            let step = self.coded.split_to(self.coded.len().min(STEP));
            decoder.write(&step).map_err(DecodeError::Gzip)?;
            self.out = decoder.take().into();
            self.decoded += self.out.len() as u64;
            if self.decoded > MAX_DECODED {
                return Err(DecodeError::TooLarge);
            }
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// Those of [`Decoded::next`], or it is longer than `most` bytes.
    pub(super) async fn whole(mut self, most: usize) -> Result<Vec<u8>, DecodeError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            if whole.len() + piece.len() > most {
                return Err(DecodeError::TooLong(most));
            }
            whole.extend_from_slice(&piece);
            tokio::task::yield_now().await;
        }
        Ok(whole)
    }
}

/// Whether a coding can be decoded.
pub fn is_gzip(coding: &str) -> bool {
    coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip")
}

/// Whether a body begins as gzip does; what upstream says of it may be wrong.
pub async fn has_gzip_bytes(object: &Arc<Object>) -> bool {
    let mut reader = Reader::range(Arc::clone(object), 0, GZIP.len() as u64);
    let mut begin = Vec::new();
    while let Ok(Some(piece)) = reader.next().await {
        begin.extend_from_slice(&piece);
    }
    begin.starts_with(&GZIP)
}
