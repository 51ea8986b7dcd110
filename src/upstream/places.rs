//! The places for concurrent fetches: so many in all, and so many for each remote. Who has to wait is served by remote in
//! turn, so that a crowd that waits for one does not stand in the way to another.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A line this long is looked through for those who have left it.
const LONG: usize = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Places {
    total: usize,
    share: usize,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    taken: usize,
    /// Remotes that have places or wait for one.
    remotes: HashMap<String, Line>,
    /// Remotes that wait, each once; the first is served next.
    turn: VecDeque<String>,
}

#[derive(Debug, Default)]
struct Line {
    taken: usize,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    remote: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.leave(&self.remote);
    }
}

impl Places {
    pub(super) fn new(total: usize, share: usize) -> Arc<Self> {
        Arc::new(Places {
            total: total.max(1),
            share: share.max(1),
            lines: Mutex::default(),
        })
    }

    /// Waits for a place for `remote`. Whoever gives up waiting drops the future.
    pub(super) async fn take(self: &Arc<Self>, remote: &str) -> Place {
        let (sender, receiver) = oneshot::channel();
        {
            let mut lines = self.lines.lock();
            let line = lines.remotes.entry(remote.to_owned()).or_default();
            if line.waiting.len() % LONG == LONG - 1 {
                line.waiting.retain(|waiting| !waiting.is_closed());
            }
            line.waiting.push_back(sender);
            if !lines.turn.iter().any(|waiting| waiting == remote) {
                lines.turn.push_back(remote.to_owned());
            }
        }
        self.serve();
        match receiver.await {
            Ok(place) => place,
            // No sender is dropped unless its receiver is.
            Err(_) => std::future::pending().await,
        }
    }

    /// How many places are taken, and how many wait for one.
    pub(super) fn counts(&self) -> [u64; 2] {
        let lines = self.lines.lock();
        let waiting = lines.remotes.values().flat_map(|line| &line.waiting);
        [
            lines.taken as u64,
            waiting.filter(|waiting| !waiting.is_closed()).count() as u64,
        ]
    }

    fn leave(self: &Arc<Self>, remote: &str) {
        {
            let mut lines = self.lines.lock();
            lines.taken -= 1;
            if let Some(line) = lines.remotes.get_mut(remote) {
                line.taken -= 1;
                if line.taken == 0 && line.waiting.is_empty() {
                    lines.remotes.remove(remote);
                }
            }
        }
        self.serve();
    }

    /// Gives out what is free.
    fn serve(self: &Arc<Self>) {
        loop {
            // Sent after the lock is given back: a place that nobody takes any more comes back by it.
            let Some((remote, sender)) = self.lines.lock().next(self.total, self.share) else {
                return;
            };
            let places = Arc::clone(self);
            let _ = sender.send(Place { places, remote });
        }
    }
}

impl Lines {
    /// Who gets a place now; counted as taken.
    fn next(&mut self, total: usize, share: usize) -> Option<(String, oneshot::Sender<Place>)> {
        for _ in 0..self.turn.len() {
            if self.taken >= total {
                return None;
            }
            let remote = self.turn.pop_front()?;
            let line = self.remotes.get_mut(&remote)?;
            while line.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                line.waiting.pop_front();
            }
            let next = if line.taken < share {
                line.waiting.pop_front()
            } else {
                None
            };
            line.taken += usize::from(next.is_some());
            self.taken += usize::from(next.is_some());
            if !line.waiting.is_empty() {
                self.turn.push_back(remote.clone());
            } else if line.taken == 0 {
                self.remotes.remove(&remote);
            }
            if let Some(sender) = next {
                return Some((remote, sender));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// What `remote` gets at once.
    fn now(places: &Arc<Places>, remote: &str) -> Option<Place> {
        places.take(remote).now_or_never()
    }

    #[test]
    fn no_remote_has_more_than_its_share() {
        let places = Places::new(4, 2);
        let first = now(&places, "a").unwrap();
        let second = now(&places, "a").unwrap();
        assert!(now(&places, "a").is_none());
        let other = now(&places, "b").unwrap();
        drop(first);
        assert!(now(&places, "a").is_some());
        drop((second, other));
        assert!(places.lines.lock().remotes.is_empty());
        assert_eq!(places.lines.lock().taken, 0);
    }

    #[test]
    fn remotes_are_served_in_turn() {
        let places = Places::new(1, 1);
        let held = now(&places, "a").unwrap();
        let mut waiting: Vec<_> = ["a", "a", "a", "b", "c"]
            .into_iter()
            .map(|remote| (remote, Box::pin(places.take(remote))))
            .collect();
        for (_, waiting) in &mut waiting {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        drop(held);
        let mut order = Vec::new();
        while !waiting.is_empty() {
            let mut left = Vec::new();
            for (remote, mut take) in waiting {
                match take.as_mut().now_or_never() {
                    Some(place) => {
                        order.push(remote);
                        drop(place);
                    }
                    None => left.push((remote, take)),
                }
            }
            waiting = left;
        }
        assert_eq!(order[0], "a");
        let mut first_three = order[..3].to_vec();
        first_three.sort_unstable();
        assert_eq!(first_three, ["a", "b", "c"], "{order:?}");
    }

    #[test]
    fn who_leaves_the_line_takes_no_place() {
        let places = Places::new(1, 1);
        let held = now(&places, "a").unwrap();
        for _ in 0..2 * LONG {
            assert!(now(&places, "a").is_none());
        }
        assert!(places.lines.lock().remotes["a"].waiting.len() <= LONG);
        drop(held);
        drop(now(&places, "b").unwrap());
        assert!(places.lines.lock().remotes.is_empty());
        assert!(places.lines.lock().turn.is_empty());
    }
}
