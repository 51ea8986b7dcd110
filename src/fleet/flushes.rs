//! Flushes: every node hears of each, also one that was away, so they are kept in Redis (a sorted set) and by each node (a
//! file), and whichever of the two lost them gets them back from the other.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::random::random;
use crate::cache::{Millis, in_folder, now_ms};

/// How many are kept, the newest.
pub(super) const KEPT: usize = 4096;

/// What a node was asked to forget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flush {
    /// When: what was stored since is not covered.
    pub at: Millis,
    /// The API's own request.
    pub request: serde_json::Value,
    /// Names it for good.
    pub id: String,
}

impl Flush {
    /// A new one, of now.
    pub fn new(request: serde_json::Value) -> Self {
        Flush {
            at: now_ms(),
            request,
            id: format!("{:016x}", random()),
        }
    }
}

/// A line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    flush: Flush,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsent: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Ids of all that are known, and of those that Redis is still to be told.
    known: HashSet<String>,
    unsent: HashSet<String>,
    dirty: bool,
}

/// Those that this node knows.
#[derive(Debug)]
pub(super) struct Flushes {
    file: PathBuf,
    /// Newest first.
    list: ArcSwap<Vec<Flush>>,
    state: Mutex<State>,
    saving: Mutex<()>,
}

impl Flushes {
    pub(super) fn load(folder: &Path) -> Self {
        let file = folder.join("flushes");
        let saved = std::fs::read_to_string(&file).unwrap_or_default();
        let flushes = Flushes {
            file,
            list: ArcSwap::default(),
            state: Mutex::default(),
            saving: Mutex::default(),
        };
        let lines = saved.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let lines: Vec<Line> = lines.collect();
        let unsent = lines.iter().filter(|line| line.unsent);
        flushes.state.lock().unsent = unsent.map(|line| line.flush.id.clone()).collect();
        flushes.add(lines.into_iter().map(|line| line.flush));
        flushes.state.lock().dirty = false;
        flushes
    }

    pub(super) fn list(&self) -> Arc<Vec<Flush>> {
        self.list.load_full()
    }

    /// Those of `flushes` that are not known, newest first. One that is older than all that are kept is taken as known once
    /// the list is full: it was, and was dropped for newer ones.
    pub(super) fn unknown(&self, flushes: Vec<Flush>) -> Vec<Flush> {
        let list = self.list();
        let oldest = list.last().filter(|_| list.len() >= KEPT).map_or(0, |flush| flush.at);
        let state = self.state.lock();
        let new = flushes.into_iter();
        new.filter(|flush| flush.at >= oldest && !state.known.contains(&flush.id))
            .collect()
    }

    pub(super) fn is_known(&self, id: &str) -> bool {
        self.state.lock().known.contains(id)
    }

    pub(super) fn add(&self, new: impl IntoIterator<Item = Flush>) {
        let mut state = self.state.lock();
        let mut list = (**self.list.load()).clone();
        for flush in new {
            if state.known.insert(flush.id.clone()) {
                list.push(flush);
                state.dirty = true;
            }
        }
        list.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
        for dropped in list.drain(KEPT.min(list.len())..) {
            state.known.remove(&dropped.id);
            if state.unsent.remove(&dropped.id) {
                tracing::error!(
                    id = dropped.id,
                    "a flush is too old to be kept, and other nodes were not told of it"
                );
            }
        }
        self.list.store(Arc::new(list));
    }

    /// Adds one that Redis is to be told of.
    pub(super) fn add_own(&self, flush: Flush) {
        self.state.lock().unsent.insert(flush.id.clone());
        self.add([flush]);
    }

    /// Redis has only the flushes `ids`: the others are to be sent again.
    pub(super) fn restore(&self, ids: &HashSet<String>) {
        let mut state = self.state.lock();
        let missing: Vec<String> = state.known.difference(ids).cloned().collect();
        state.dirty |= !missing.is_empty();
        state.unsent.extend(missing);
    }

    /// Those that Redis is still to be told, oldest first.
    pub(super) fn unsent(&self) -> Vec<Flush> {
        let state = self.state.lock();
        if state.unsent.is_empty() {
            return Vec::new();
        }
        let list = self.list.load();
        let unsent = list.iter().rev().filter(|flush| state.unsent.contains(&flush.id));
        unsent.cloned().collect()
    }

    pub(super) fn count_unsent(&self) -> usize {
        self.state.lock().unsent.len()
    }

    pub(super) fn sent(&self, id: &str) {
        let mut state = self.state.lock();
        state.dirty |= state.unsent.remove(id);
    }

    /// Writes the file if something changed. Blocks.
    pub(super) fn save(&self, sync: bool) {
        let _one_at_a_time = self.saving.lock();
        let lines: Vec<u8> = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.dirty) {
                return;
            }
            let list = self.list.load();
            let lines = list.iter().filter_map(|flush| {
                let line = Line {
                    flush: flush.clone(),
                    unsent: state.unsent.contains(&flush.id),
                };
                Some(serde_json::to_string(&line).ok()? + "\n")
            });
            lines.collect::<String>().into_bytes()
        };
        if let Err(error) = replace(&self.file, &lines, sync) {
            self.state.lock().dirty = true;
            tracing::error!(%error, "flushes cannot be kept: a crash would lose those that other nodes were not told of");
        }
    }
}

/// Writes a file that is there whole or as it was.
pub fn replace(file: &Path, content: &[u8], sync: bool) -> io::Result<()> {
    let new = file.with_extension("new");
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut writing = in_folder(folder, || std::fs::File::create(&new))?;
    writing.write_all(content)?;
    if sync {
        writing.sync_all()?;
    }
    std::fs::rename(&new, file)?;
    if sync {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flush(at: Millis) -> Flush {
        Flush {
            at,
            request: json!({"remote": "hub", "at": at}),
            id: format!("{at}"),
        }
    }

    #[test]
    fn they_come_back_newest_first_with_what_is_still_to_be_sent() {
        let folder = tempfile::tempdir().unwrap();
        let flushes = Flushes::load(folder.path());
        flushes.add([flush(2), flush(3), flush(2)]);
        flushes.add_own(flush(1));
        flushes.add_own(flush(4));
        flushes.sent("4");
        flushes.save(true);
        std::fs::OpenOptions::new()
            .append(true)
            .open(folder.path().join("flushes"))
            .and_then(|mut file| file.write_all(b"{\"at\": torn"))
            .unwrap();
        let again = Flushes::load(folder.path());
        assert_eq!(*again.list(), [4, 3, 2, 1].map(flush));
        assert_eq!(again.unsent(), [flush(1)]);
        assert_eq!(again.unknown(vec![flush(0), flush(2)]), [flush(0)]);
        again.restore(&HashSet::from(["2".to_owned(), "1".to_owned()]));
        assert_eq!(again.unsent(), [1, 3, 4].map(flush));
    }

    #[test]
    fn only_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let flushes = Flushes::load(folder.path());
        flushes.add_own(flush(1));
        flushes.add((2..).take(KEPT).map(flush));
        assert_eq!(flushes.list().len(), KEPT);
        assert_eq!(flushes.list().last(), Some(&flush(2)));
        assert_eq!(flushes.count_unsent(), 0);
        // It was known.
        assert!(flushes.unknown(vec![flush(1)]).is_empty());
    }
}
