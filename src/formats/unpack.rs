//! Takes the packing off a file that comes in one (gzip, zstd), whatever its name says of it, while it comes.

use std::io::{self, Write as _};

use zstd::stream::write::Decoder as Zstd;

use super::IndexError;
use crate::gunzip::{GZIP, Gunzip};

/// What a file may be unpacked to: a bomb ends here, the longest list of packages does not.
const MAX_UNPACKED: u64 = 1 << 30;
/// What is unpacked at once: a bomb's next kilobytes can be megabytes.
const STEP: usize = 1 << 10;
/// What is handed on at once, or more.
const PIECE: usize = 64 << 10;
/// The bits of the longest window that is unpacked, which is memory: 32 MB. Tools that write indexes take 8 MB at most.
const MAX_WINDOW: u32 = 25;
/// What a frame of zstd begins with (RFC 8878 section 3.1.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// ... and what packings begin with that are not read: xz, bzip2, zchunk.
const OTHERS: [&[u8]; 3] = [b"\xfd7zXZ", b"BZh", b"\0ZCK"];
/// So many bytes tell them apart.
const BEGINNING: usize = 5;

enum Packing {
    /// Not known yet: what came.
    Unknown(Vec<u8>),
    None,
    Gzip(Gunzip),
    Zstd(Box<Zstd<'static, Vec<u8>>>),
}

/// The reader.
pub(super) struct Unpack {
    packing: Packing,
    unpacked: u64,
}

impl Default for Unpack {
    fn default() -> Self {
        Unpack {
            packing: Packing::Unknown(Vec::new()),
            unpacked: 0,
        }
    }
}

impl Unpack {
    /// Takes the next piece and hands on what is in it.
    ///
    /// # Errors
    /// The content is damaged, too long, or packed in another way.
    pub(super) fn write(&mut self, piece: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), IndexError> {
        let Packing::Unknown(begun) = &mut self.packing else {
            return self.unpack(piece, take);
        };
        begun.extend_from_slice(piece);
        if begun.len() < BEGINNING {
            return Ok(());
        }
        let begun = std::mem::take(begun);
        self.begin(&begun)?;
        self.unpack(&begun, take)
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// The content is cut, damaged, or packed in another way.
    pub(super) fn end(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<(), IndexError> {
        if let Packing::Unknown(begun) = &mut self.packing {
            let begun = std::mem::take(begun);
            self.begin(&begun)?;
            self.unpack(&begun, take)?;
        }
        match &mut self.packing {
            Packing::Unknown(_) | Packing::None => Ok(()),
            Packing::Gzip(gunzip) => {
                gunzip.end().map_err(damaged)?;
                take(&gunzip.take());
                Ok(())
            }
            Packing::Zstd(zstd) => {
                zstd.do_finish().map_err(damaged)?;
                take(&std::mem::take(zstd.get_mut()));
                Ok(())
            }
        }
    }

    fn begin(&mut self, begun: &[u8]) -> Result<(), IndexError> {
        if OTHERS.iter().any(|other| begun.starts_with(other)) {
            let reason = "it is packed in a way that is not read here (xz, bzip2, zchunk)";
            return Err(IndexError(reason.to_owned()));
        }
        self.packing = if begun.starts_with(&GZIP) {
            Packing::Gzip(Gunzip::new())
        } else if begun.starts_with(&ZSTD) {
            let mut zstd = Zstd::new(Vec::new()).map_err(damaged)?;
            zstd.window_log_max(MAX_WINDOW).map_err(damaged)?;
            Packing::Zstd(Box::new(zstd))
        } else {
            Packing::None
        };
        Ok(())
    }

    fn unpack(&mut self, piece: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), IndexError> {
        let mut out = Vec::new();
        for step in piece.chunks(STEP) {
            let before = out.len();
            match &mut self.packing {
                Packing::Unknown(_) | Packing::None => out.extend_from_slice(step),
                Packing::Gzip(gunzip) => {
                    gunzip.write(step).map_err(damaged)?;
                    out.append(&mut gunzip.take());
                }
                Packing::Zstd(zstd) => {
                    zstd.write_all(step).and_then(|()| zstd.flush()).map_err(damaged)?;
                    out.append(zstd.get_mut());
                }
            }
            self.unpacked += (out.len() - before) as u64;
            if self.unpacked > MAX_UNPACKED {
                return Err(IndexError(format!("it unpacks to more than {MAX_UNPACKED} bytes")));
            }
            if out.len() >= PIECE {
                take(&out);
                out.clear();
            }
        }
        take(&out);
        Ok(())
    }
}

fn damaged(error: io::Error) -> IndexError {
    IndexError(format!("it is damaged: {error}"))
}
