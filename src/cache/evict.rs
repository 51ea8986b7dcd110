//! What goes when space is short: the least recently used of a sample. There is no index, so ten million objects cost
//! no memory and a restart or a crash loses nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Hash;
use super::disk::Amount;
use super::freshness::AHEAD;
use super::key::parse_hash;

/// Candidates that are looked at before the oldest of them go.
const SAMPLE: usize = 64;
/// How many of a full sample go at once.
const BATCH: usize = 8;

#[derive(Debug)]
pub(super) struct Candidate {
    pub path: PathBuf,
    pub hash: Hash,
    pub used: SystemTime,
    pub size: Amount,
}

/// The objects that should go first, oldest first: from a random folder on until [`SAMPLE`] were seen, the whole of a
/// store that has fewer. Objects are spread over the folders by hash, so a run of folders is a random sample. What is
/// `spared` does not count.
pub(super) fn victims(root: &Path, random: u16, spared: impl Fn(&Hash) -> bool) -> Vec<Candidate> {
    let mut seen = Vec::new();
    let [first, second] = random.to_be_bytes();
    // What cannot be listed has no candidates; that it cannot is said by who counts.
    let names = |folder: &Path| names(folder).unwrap_or_default();
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

/// What an outer folder takes, with all that lies in it. Folders without objects are removed.
///
/// # Errors
/// A folder in it cannot be listed: it is not known what that takes.
pub(super) fn taken_by(outer: &Path) -> io::Result<Amount> {
    let mut taken = Amount::default();
    for inner in folders_in(outer)? {
        let inner = outer.join(inner);
        let mut files = Amount::default();
        for entry in listed(&inner)? {
            match entry?.metadata() {
                Ok(meta) => files = files + Amount::of_file(meta.len()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if files.files > 0 || fs::remove_dir(&inner).is_err() {
            taken = taken + files + Amount::of_folders(1);
        }
    }
    let is_gone = taken.files == 0 && (fs::remove_dir(outer).is_ok() || !outer.exists());
    Ok(taken + Amount::of_folders(u64::from(!is_gone)))
}

/// Calls `visit` with every stored object's hash, as long as it says so.
///
/// # Errors
/// A folder cannot be listed. The others were visited.
pub(super) fn each_hash_while(root: &Path, mut visit: impl FnMut(Hash) -> bool) -> io::Result<()> {
    let mut failed = None;
    for outer in folders_in(root)? {
        match each_hash_below(&root.join(outer), &mut visit) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Calls `visit` with the hash of every object in an outer folder, as long as it says so; `false` if it ended that.
///
/// # Errors
/// A folder cannot be listed. The others were visited.
pub(super) fn each_hash_below(outer: &Path, mut visit: impl FnMut(Hash) -> bool) -> io::Result<bool> {
    let mut failed = None;
    for inner in folders_in(outer)? {
        match names(&outer.join(inner)) {
            Ok(names) => {
                if names
                    .iter()
                    .filter_map(|name| parse_hash(name))
                    .any(|hash| !visit(hash))
                {
                    return Ok(false);
                }
            }
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(true), Err)
}

/// The folders of a level; whatever has a name of another length is not of this program.
fn folders_in(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = names(folder)?;
    names.retain(|name| name.len() == 2);
    Ok(names)
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in listed(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// The entries of a folder, none where there is no such folder.
fn listed(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(error)
            .map_err(|error| io::Error::new(error.kind(), format!("{} cannot be listed: {error}", folder.display()))),
    }
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
            size: Amount::of_file(meta.len()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::disk;
    use std::collections::HashSet;

    fn make(root: &Path, n: u32) {
        for i in 0..n {
            let hash = pingora_cache::key::hash_key(format!("object {i}"));
            let name = hex::encode(hash);
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
        each_hash_while(dir.path(), |_| {
            count += 1;
            true
        })
        .unwrap();
        assert_eq!(count, 300);
    }

    /// Outer and inner folders.
    fn folders(root: &Path) -> u64 {
        let outer = names(root).unwrap();
        let inner = outer.iter().map(|outer| names(&root.join(outer)).unwrap().len());
        (inner.sum::<usize>() + outer.len()) as u64
    }

    fn taken(root: &Path) -> io::Result<Amount> {
        (0..256).map(|outer| taken_by(&root.join(format!("{outer:02x}")))).sum()
    }

    #[test]
    fn folders_count_and_empty_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 300);
        let used = folders(dir.path());
        assert_eq!(
            taken(dir.path()).unwrap(),
            Amount {
                bytes: (300 + used) * 4096,
                files: 300 + used
            }
        );
        for outer in names(dir.path()).unwrap() {
            fs::create_dir_all(dir.path().join(outer).join("zz")).unwrap();
        }
        fs::create_dir_all(dir.path().join("ff/ff")).unwrap();
        assert!(folders(dir.path()) > used);
        assert_eq!(taken(dir.path()).unwrap().files, 300 + used);
        let left = folders(dir.path());
        assert!(left == used, "{left} folders are left of {used} that hold something");
    }

    #[test]
    fn what_cannot_be_listed_is_an_error_and_no_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 20);
        let outer = names(dir.path()).unwrap().remove(0);
        fs::rename(dir.path().join(&outer), dir.path().join("aside")).unwrap();
        fs::write(dir.path().join(&outer), "not a folder").unwrap();
        let error = taken(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&outer), "{error}");
        let mut count = 0;
        let walked = each_hash_while(dir.path(), |_| {
            count += 1;
            true
        });
        assert!(walked.is_err() && count > 0, "{walked:?}, {count} seen");
    }
}
