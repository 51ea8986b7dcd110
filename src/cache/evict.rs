//! What goes when space is short: the least recently used of a sample. There is no index, so ten million objects cost
//! no memory and a restart or a crash loses nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::freshness::AHEAD;
use super::{Hash, disk};

/// Candidates that are looked at before the oldest of them go.
const SAMPLE: usize = 64;
/// How many of a full sample go at once.
const BATCH: usize = 8;

#[derive(Debug)]
pub struct Candidate {
    pub path: PathBuf,
    pub hash: Hash,
    pub used: SystemTime,
    pub size: u64,
}

/// The objects that should go first, oldest first: from a random folder on until [`SAMPLE`] were seen, the whole of a
/// store that has fewer. Objects are spread over the folders by hash, so a run of folders is a random sample. What is
/// `spared` does not count.
pub fn victims(root: &Path, random: u16, spared: impl Fn(&Hash) -> bool) -> Vec<Candidate> {
    let mut seen = Vec::new();
    let [first, second] = random.to_be_bytes();
    let mut outer = names(root);
    let outer_start = outer.partition_point(|name| name.as_str() < format!("{first:02x}").as_str());
    outer.rotate_left(outer_start);
    // The folder that the walk starts in is entered twice: from its middle first, for its beginning last.
    let mut turns: Vec<(usize, bool)> = (0..outer.len()).map(|index| (index, index == 0)).collect();
    if !outer.is_empty() {
        turns.push((0, false));
    }
    let full = 'walk: {
        for (turn, (index, from_middle)) in turns.iter().enumerate() {
            let folder = root.join(&outer[*index]);
            let inner = names(&folder);
            let middle = inner.partition_point(|name| name.as_str() < format!("{second:02x}").as_str());
            let part = match (index, from_middle) {
                (0, true) => &inner[middle..],
                (0, false) if turn > 0 => &inner[..middle],
                _ => &inner[..],
            };
            for name in part {
                files(&folder.join(name), &spared, &mut seen);
                if seen.len() >= SAMPLE {
                    break 'walk true;
                }
            }
        }
        false
    };
    seen.sort_by_key(|candidate| candidate.used);
    if full {
        seen.truncate(BATCH);
    }
    seen
}

/// Bytes that the objects in an outer folder take.
pub fn bytes_below(outer: &Path) -> u64 {
    let mut bytes = 0;
    for inner in names(outer) {
        let Ok(entries) = fs::read_dir(outer.join(inner)) else {
            continue;
        };
        bytes += entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|meta| disk::occupied(meta.len()))
            .sum::<u64>();
    }
    bytes
}

/// Calls `visit` with every stored object's hash.
pub fn each_hash(root: &Path, mut visit: impl FnMut(Hash)) {
    each_hash_while(root, |hash| {
        visit(hash);
        true
    });
}

/// The same, as long as `visit` says so.
pub fn each_hash_while(root: &Path, mut visit: impl FnMut(Hash) -> bool) {
    for outer in names(root) {
        let outer = root.join(outer);
        for inner in names(&outer) {
            for name in names(&outer.join(inner)) {
                if parse_hash(&name).is_some_and(|hash| !visit(hash)) {
                    return;
                }
            }
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

fn files(folder: &Path, spared: &impl Fn(&Hash) -> bool, seen: &mut Vec<Candidate>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let ahead = SystemTime::now() + Duration::from_millis(AHEAD);
    for entry in entries.flatten() {
        let Some(hash) = entry.file_name().to_str().and_then(parse_hash) else {
            continue;
        };
        if spared(&hash) {
            continue;
        }
        let Ok(meta) = entry.metadata() else { continue };
        // A time that lies ahead was written by a clock that was wrong, and says nothing.
        let used = meta.modified().ok().filter(|used| *used <= ahead);
        let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
        seen.push(Candidate {
            path: entry.path(),
            hash,
            used,
            size: disk::occupied(meta.len()),
        });
    }
}

/// The hash that [`super::hex`] wrote so.
pub fn parse_hash(name: &str) -> Option<Hash> {
    if name.len() != 32 || !name.is_ascii() {
        return None;
    }
    let mut hash = [0; 16];
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(name.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn make(root: &Path, n: u32) {
        for i in 0..n {
            let hash = pingora_cache::key::hash_key(format!("object {i}"));
            let name = super::super::hex(&hash);
            let folder = root.join(&name[0..2]).join(&name[2..4]);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(&name), b"x").unwrap();
            let used = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(i) + 1);
            disk::touch(&folder.join(&name), used).unwrap();
        }
    }

    #[test]
    fn a_small_store_is_seen_whole_and_in_order_of_use_from_every_start() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 40);
        for random in [0u16, 1, 0x00ff, 0x7f80, 0xffff, 0x1234] {
            let seen = victims(dir.path(), random, |_| false);
            assert_eq!(seen.len(), 40, "start {random:04x}");
            assert_eq!(seen.iter().map(|c| c.hash).collect::<HashSet<_>>().len(), 40);
            assert!(seen.is_sorted_by_key(|c| c.used));
            let spared = seen[0].hash;
            let rest = victims(dir.path(), random, |hash| *hash == spared);
            assert!(rest.len() == 39 && rest.iter().all(|candidate| candidate.hash != spared));
        }
    }

    #[test]
    fn what_was_used_when_the_clock_was_ahead_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 10);
        let seen = victims(dir.path(), 0, |_| false);
        let ahead = &seen[7];
        let year = Duration::from_secs(365 * 24 * 3600);
        disk::touch(&ahead.path, SystemTime::now() + year).unwrap();
        assert_eq!(victims(dir.path(), 0, |_| false)[0].hash, ahead.hash);
        disk::touch(&ahead.path, SystemTime::now()).unwrap();
        assert_eq!(victims(dir.path(), 0, |_| false)[9].hash, ahead.hash);
    }

    #[test]
    fn a_large_store_gives_a_small_batch() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 300);
        for random in [0u16, 0x8000, 0xfffe] {
            assert_eq!(victims(dir.path(), random, |_| false).len(), BATCH);
        }
        let mut count = 0;
        each_hash(dir.path(), |_| count += 1);
        assert_eq!(count, 300);
        let bytes: u64 = (0..256)
            .map(|outer| bytes_below(&dir.path().join(format!("{outer:02x}"))))
            .sum();
        assert_eq!(bytes, 300 * 4096);
    }
}
