//! The hot tier: small objects whole, larger ones as an open file with its head decoded.

use std::fs::File;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::{Body, Hash, Object};

/// What an entry costs beside its body: head, prepared response, map slots, and for a file its descriptor.
const OVERHEAD: u64 = 4 << 10;
/// Each is a mapping too, and a process may have 65,530 of those (`vm.max_map_count`).
const MOST_FILES: u64 = 16_384;
/// An open file weighs at least this.
const FILE_WEIGHT: u64 = 64 << 10;

/// Of these lengths a copy less is worth a descriptor; longer bodies are sent faster by copying (docs/performance.md).
const WORTH_A_FILE: RangeInclusive<usize> = 32 << 10..=256 << 10;

/// `bytes` as they are best held: those of middle length in a file in memory, whose pages `sendfile` hands to a socket without
/// copying them. Mapped, they are ordinary bytes for everybody else.
pub(super) fn body(bytes: Vec<u8>) -> Body {
    if WORTH_A_FILE.contains(&bytes.len()) {
        match in_a_file(&bytes) {
            Ok((mapped, file)) => return Body::Memory(mapped, Some(file)),
            // Without descriptors to spare it is one copy more.
            Err(error) => tracing::debug!(%error, "no file in memory"),
        }
    }
    Body::Memory(bytes.into(), None)
}

fn in_a_file(bytes: &[u8]) -> io::Result<(Bytes, File)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("artifact", flags)?);
    file.write_all(bytes)?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    // SAFETY: the seals keep its bytes and its length for good. (A write seal allows private mappings only, on kernels
    // before 6.7.)
    #[allow(unsafe_code, reason = "a mapping is only as sound as its file is fixed")]
    let mapped = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file)? };
    Ok((Bytes::from_owner(mapped), file))
}

#[derive(Debug, Clone)]
struct ByBytes {
    /// Chosen so that open files take at most a third of the descriptors that the process may have.
    file_weight: u64,
}

impl Weighter<Hash, Arc<Object>> for ByBytes {
    fn weight(&self, _: &Hash, object: &Arc<Object>) -> u64 {
        match &object.body {
            Body::Memory(bytes, None) => bytes.len() as u64 + OVERHEAD,
            Body::Memory(bytes, Some(_)) => self.file_weight.max(bytes.len() as u64 + OVERHEAD),
            Body::File { .. } | Body::Elsewhere(_) => self.file_weight,
        }
    }
}

/// A bounded map of what was used lately (S3-FIFO with sharded locks).
#[derive(Debug)]
pub(super) struct Memory {
    cache: Cache<Hash, Arc<Object>, ByBytes>,
    /// Bodies up to this are held whole.
    pub largest: u64,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .unwrap_or(65_536);
        let bytes = bytes.max(FILE_WEIGHT);
        let files = (descriptors / 3).clamp(1, MOST_FILES);
        let file_weight = FILE_WEIGHT.max(bytes / files);
        let items = usize::try_from(bytes / (16 << 10))
            .unwrap_or(usize::MAX)
            .clamp(64, 1 << 20);
        Memory {
            cache: Cache::with_weighter(items, bytes, ByBytes { file_weight }),
            largest: (bytes / 64).min(1 << 20),
        }
    }
    pub(super) fn get(&self, hash: &Hash) -> Option<Arc<Object>> {
        self.cache.get(hash)
    }
    pub(super) fn insert(&self, object: Arc<Object>) {
        self.cache.insert(object.key.hash, object);
    }
    pub(super) fn remove(&self, hash: &Hash) {
        self.cache.remove(hash);
    }
    /// Removes the object with `id`, and no other that has taken its place.
    pub(super) fn forget(&self, hash: &Hash, id: u64) {
        self.cache.remove_if(hash, |object| object.id == id);
    }
    /// Drops what is not to be kept.
    pub(super) fn retain(&self, keep: impl Fn(&Object) -> bool) {
        self.cache.retain(|_, object| keep(object));
    }
    pub(super) fn weight(&self) -> u64 {
        self.cache.weight()
    }
    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_held_whole_whatever_their_length() {
        for length in [1, 32_767, 32_768, 100_000, 256 << 10, (256 << 10) + 1, 1 << 20] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let Body::Memory(held, file) = body(bytes.clone()) else {
                panic!("{length} bytes are not in memory");
            };
            assert!(held == bytes, "{length} bytes changed");
            assert_eq!(file.is_some(), WORTH_A_FILE.contains(&length), "{length} bytes");
        }
    }
}
