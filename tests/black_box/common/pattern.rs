//! Bodies of any size that need no memory: each byte follows from its offset.

use bytes::Bytes;

/// `length` bytes of the stream named by `seed`, from `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    pub seed: u64,
    pub start: u64,
    pub length: u64,
}

impl Pattern {
    pub fn new(seed: u64, length: u64) -> Self {
        Self { seed, start: 0, length }
    }

    /// The bytes from `offset` (counted from the pattern's own start) on, at most `most` of them.
    pub fn bytes(&self, offset: u64, most: usize) -> Bytes {
        let length = self.length.saturating_sub(offset).min(most as u64) as usize;
        let mut out = Vec::with_capacity(length + 16);
        let first = self.start + offset;
        let mut word = first / 8;
        let skip = (first % 8) as usize;
        while out.len() < length + skip {
            out.extend_from_slice(&mix(self.seed, word).to_le_bytes());
            word += 1;
        }
        Bytes::from(out).slice(skip..skip + length)
    }

    /// All of it in memory: for small ones.
    pub fn whole(&self) -> Bytes {
        self.bytes(0, usize::try_from(self.length).expect("small enough"))
    }

    /// The part `[from, to)`.
    pub fn slice(&self, from: u64, to: u64) -> Self {
        assert!(from <= to && to <= self.length);
        Self {
            seed: self.seed,
            start: self.start + from,
            length: to - from,
        }
    }

    /// Whether `chunk` is what stands at `offset`.
    pub fn matches(&self, offset: u64, chunk: &[u8]) -> bool {
        offset + chunk.len() as u64 <= self.length && self.bytes(offset, chunk.len()) == chunk
    }
}

fn mix(seed: u64, word: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(word.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}
