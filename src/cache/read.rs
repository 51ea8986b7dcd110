//! Reading a file, if possible from the page cache and without waiting for a disk (`preadv2` with `RWF_NOWAIT`).

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Reads what can be had without waiting: `AGAIN` if the disk would have to be asked.
///
/// # Errors
/// Those of `preadv2`; `OPNOTSUPP` and its like where the file system or the kernel cannot tell.
pub(super) fn read_now(file: &File, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    preadv2(file, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT)
}

/// Fills `buffer`, on a thread that may wait: without waiting where that is possible.
///
/// # Errors
/// The disk refuses, or the file ends before.
pub(super) fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    match read_now(file, buffer, at) {
        Ok(got) if got == buffer.len() => Ok(()),
        Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            file.read_exact_at(buffer, at)
        }
        Err(error) => Err(error.into()),
    }
}
