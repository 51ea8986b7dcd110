//! What is stored, compared with its digests at once (`artifactapi verify`), and how far the scrubber has come, which does so
//! slowly while the service runs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::disk::{self, Disk};
use super::evict;
use super::kept;
use super::key::{Hash, Key};
use super::time::{Millis, now_ms};

/// Outer folders.
pub(super) const FOLDERS: u64 = 256;

/// The scrubber's counters, and its position.
#[derive(Debug)]
pub(super) struct Scrub {
    /// Keeps the position over a restart.
    file: PathBuf,
    pub objects: AtomicU64,
    pub bytes: AtomicU64,
    /// Outer folders of this round that are done.
    folders: AtomicU64,
    pub rounds: AtomicU64,
}

/// How far the scrubber has come, for `/metrics`: since the start, but for `percent`, which is of this round.
#[derive(Debug, Clone, Copy)]
pub struct Scrubbed {
    pub objects: u64,
    pub bytes: u64,
    pub rounds: u64,
    pub percent: u64,
}

impl Scrub {
    pub(super) fn new(file: PathBuf) -> Self {
        Scrub {
            file,
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            folders: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
        }
    }

    pub(super) fn progress(&self) -> Scrubbed {
        Scrubbed {
            objects: self.objects.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            rounds: self.rounds.load(Relaxed),
            percent: self.folders.load(Relaxed) * 100 / FOLDERS,
        }
    }

    /// The folder to go on with, and when its round began.
    pub(super) fn load(&self) -> Option<(u64, Millis)> {
        let text = fs::read_to_string(&self.file).ok()?;
        let (folder, began) = text.trim().split_once(' ')?;
        // What a clock that was ahead has written would put off the next round for as long.
        Some((folder.parse().ok()?, began.parse::<Millis>().ok()?.min(now_ms())))
    }

    /// Keeps the folder to go on with, and when its round began.
    pub(super) fn save(&self, folder: u64, began: Millis) {
        self.folders.store(folder, Relaxed);
        let new = self.file.with_extension("new");
        // Worth no more than a try: a round that begins anew is only work.
        let _ = fs::write(&new, format!("{folder} {began}\n")).and_then(|()| fs::rename(&new, &self.file));
    }
}

/// What [`verify`] found.
#[derive(Debug, Default)]
pub struct Verified {
    pub objects: u64,
    pub bytes: u64,
    /// Removed, unless it was reported that they were not.
    pub damaged: u64,
    /// Objects that cannot be read now.
    pub unread: u64,
    /// Why not all of the store was looked at.
    pub unlisted: Option<io::Error>,
}

/// Compares all that is stored below `data_dir` with its digests, and removes what is damaged and can be fetched again. What
/// was uploaded stays, and so does what cannot be read for another reason. A service may run on the same folder. `report` is
/// told of each in a line.
///
/// # Errors
/// There is no store.
pub fn verify(data_dir: &Path, mut report: impl FnMut(&str)) -> io::Result<Verified> {
    let mut found = Verified::default();
    let mut is_empty = true;
    for (folder, what) in [
        (data_dir.to_owned(), Damaged::Goes),
        (data_dir.join(kept::FOLDER), Damaged::Stays),
    ] {
        if folder.join("objects").is_dir() {
            is_empty = false;
            let disk = Disk::open(&folder)?;
            let walked = evict::each_hash_while(disk.root(), |hash| {
                found.examine(&disk, &hash, what, &mut report);
                true
            });
            found.unlisted = found.unlisted.or(walked.err());
        }
    }
    match is_empty {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "nothing was ever stored there")),
        false => Ok(found),
    }
}

/// What becomes of a damaged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damaged {
    /// The file can be fetched again.
    Goes,
    /// Nobody else has it.
    Stays,
}

impl Verified {
    fn examine(&mut self, disk: &Disk, hash: &Hash, what: Damaged, report: &mut impl FnMut(&str)) {
        // Removed since its folder was listed.
        let Some(file) = disk.open_file(hash) else { return };
        self.objects += 1;
        let (name, why) = match look(&file, &mut self.bytes) {
            (_, Ok(())) => return,
            (name, Err(why)) => (name.unwrap_or_else(|| hex::encode(hash)), why),
        };
        if !disk::is_damage(&why) {
            self.unread += 1;
            report(&format!("unread: {name}: {why}: it stays"));
            return;
        }
        self.damaged += 1;
        if what == Damaged::Stays {
            let path = disk.path(hash);
            report(&format!(
                "damaged: {name}: {why}: it was uploaded here, and stays in {}: restore it from a backup, or upload it again",
                path.display()
            ));
            return;
        }
        // A service that has it open finds it empty, and forgets it.
        let emptied = OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .and_then(|file| file.set_len(0));
        let then = match emptied.and_then(|()| disk.remove(hash, Some(&file))) {
            Ok(_) => "removed".to_owned(),
            Err(error) => format!("it cannot be removed: {error}"),
        };
        report(&format!("damaged: {name}: {why}: {then}"));
    }
}

/// What the object in `file` is called, and what is wrong with it.
fn look(file: &File, bytes: &mut u64) -> (Option<String>, io::Result<()>) {
    let record = match disk::read_record(file) {
        Ok(record) => record,
        Err(error) => return (None, Err(error)),
    };
    let name = Some(Key::from_text(&record.key_text).shown());
    match disk::is_intact(file, record.offset, &record.finished, |read| *bytes += read) {
        Ok(true) => (name, Ok(())),
        Ok(false) => {
            let why = io::Error::new(io::ErrorKind::InvalidData, "its body does not match its digest");
            (name, Err(why))
        }
        Err(error) => (name, Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_kept_and_no_round_is_put_off_by_a_clock_that_was_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let scrub = || Scrub::new(dir.path().join("scrubbed"));
        assert_eq!(scrub().load(), None);
        scrub().save(64, 1000);
        assert_eq!(scrub().load(), Some((64, 1000)));
        let ahead = now_ms() + 400 * 24 * 3_600_000;
        scrub().save(256, ahead);
        assert!(
            scrub()
                .load()
                .is_some_and(|(folder, began)| folder == 256 && began < ahead)
        );
        fs::write(dir.path().join("scrubbed"), "x").unwrap();
        assert_eq!(scrub().load(), None);
    }
}
