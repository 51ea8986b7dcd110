//! Which thread serves a connection: the one that has the fewest. Pingora hands them out by chance, which leaves a thread
//! idle while another has most of the large transfers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::runtime::Handle;

/// The threads that have served a connection, each with an event loop of its own.
#[derive(Debug, Default)]
pub(super) struct Threads {
    known: Mutex<Vec<(Handle, Arc<AtomicUsize>)>>,
}

/// A connection's place on a thread, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Threads {
    /// A place on the thread with the fewest connections, if that is another than this one.
    pub(super) fn place(&self) -> (Place, Option<Handle>) {
        let here = Handle::current();
        let mut known = self.known.lock();
        if !known.iter().any(|(handle, _)| handle.id() == here.id()) {
            known.push((here.clone(), Arc::default()));
        }
        let (handle, connections) = known
            .iter()
            .min_by_key(|(handle, connections)| (connections.load(Relaxed), handle.id() != here.id()))
            .expect("this thread is in it");
        connections.fetch_add(1, Relaxed);
        let elsewhere = (handle.id() != here.id()).then(|| handle.clone());
        (Place(Arc::clone(connections)), elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_there_are_fewest() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (one, two) = (runtime(), runtime());
        let threads = Threads::default();
        let on = |runtime: &tokio::runtime::Runtime| runtime.block_on(async { threads.place() });
        // Only this thread is known.
        let (first, elsewhere) = on(&one);
        assert!(elsewhere.is_none());
        // This one has none yet.
        let (_second, elsewhere) = on(&two);
        assert!(elsewhere.is_none());
        // As many as the other.
        let (third, elsewhere) = on(&one);
        assert!(elsewhere.is_none());
        let (_fourth, elsewhere) = on(&one);
        assert_eq!(elsewhere.unwrap().id(), two.handle().id());
        drop((first, third));
        let (_fifth, elsewhere) = on(&two);
        assert_eq!(elsewhere.unwrap().id(), one.handle().id());
    }
}
