//! For which request something is done: its id, which goes upstream with every question that is asked for it, and how long it
//! has waited for upstream. Known to the task that answers the request and to the flights that it begins.

use std::cell::Cell;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The field that carries the id of a request, to both sides.
pub const FIELD: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken from a client.
const LONGEST: usize = 128;
/// Of an id that is made here.
const DIGITS: usize = 32;

tokio::task_local! {
    static REQUEST: Arc<OnBehalf>;
}

/// An id that may stand in a header and in a log as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id that the client gave, or one that is made now.
    pub fn of(headers: &HeaderMap) -> RequestId {
        let mut given = headers.get_all(FIELD).iter();
        let only = given.next().filter(|_| given.next().is_none());
        match only.filter(|id| is_sane(id.as_bytes())) {
            Some(id) => RequestId(id.clone()),
            None => RequestId::new(),
        }
    }

    /// One that is made now, by chance.
    pub fn new() -> RequestId {
        let mut digits = Vec::with_capacity(DIGITS);
        write_new(&mut digits);
        RequestId(HeaderValue::try_from(digits).unwrap_or_else(|_| unreachable!("digits may stand in a header")))
    }

    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether what a client calls its request can be taken over: not too long, and of characters that mean nothing to whoever
/// reads a log.
pub fn is_sane(id: &[u8]) -> bool {
    let may_stand = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:=+/@~".contains(byte);
    (1..=LONGEST).contains(&id.len()) && id.iter().all(may_stand)
}

/// Appends an id made by chance: 32 hexadecimal digits, as W3C's trace ids have.
pub fn write_new(into: &mut Vec<u8>) {
    thread_local! {
        static STATE: Cell<[u64; 2]> = Cell::new([0, 1].map(|half: u8| RandomState::new().hash_one(half)));
    }
    const HEX: &[u8; 16] = b"0123456789abcdef";
    // SplitMix64, for each half: well spread, and nobody has to be unable to guess it.
    let state = STATE.get().map(|half| half.wrapping_add(0x9e37_79b9_7f4a_7c15));
    STATE.set(state);
    let mut digits = [0; DIGITS];
    for (half, digits) in state.into_iter().zip(digits.chunks_exact_mut(DIGITS / 2)) {
        let mixed = (half ^ (half >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (mixed ^ (mixed >> 31)).to_be_bytes();
        for (byte, two) in bytes.into_iter().zip(digits.chunks_exact_mut(2)) {
            two.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    into.extend_from_slice(&digits);
}

/// A request, as those know it who do something for it.
#[derive(Debug)]
pub struct OnBehalf {
    pub id: RequestId,
    waited_nanos: AtomicU64,
}

impl OnBehalf {
    pub fn new(id: RequestId) -> Arc<Self> {
        Arc::new(OnBehalf {
            id,
            waited_nanos: AtomicU64::new(0),
        })
    }

    /// How long it has waited for upstream; `None`: upstream had no part in it.
    pub fn waited(&self) -> Option<Duration> {
        match self.waited_nanos.load(Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}

/// Does what `work` is for `request`.
pub fn of<W: Future>(request: Arc<OnBehalf>, work: W) -> impl Future<Output = W::Output> {
    REQUEST.scope(request, work)
}

/// Does what `work` is for the request of this task, if there is one, in a task of its own. What that waits for is not counted
/// again.
pub fn same<W: Future>(work: W) -> impl Future<Output = W::Output> {
    let request = request_id().map(OnBehalf::new);
    async move {
        match request {
            Some(request) => of(request, work).await,
            None => work.await,
        }
    }
}

/// The id of the request of this task, if there is one.
pub fn request_id() -> Option<RequestId> {
    REQUEST.try_with(|request| request.id.clone()).ok()
}

/// Upstream is waited for until this is dropped.
pub fn waiting() -> Waiting {
    Waiting(Instant::now())
}

/// See [`waiting`].
pub struct Waiting(Instant);

impl Drop for Waiting {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let _ = REQUEST.try_with(|request| request.waited_nanos.fetch_add(nanos.max(1), Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_here_differ_and_are_sane() {
        let ids: std::collections::HashSet<Vec<u8>> = (0..1000).map(|_| RequestId::new().as_bytes().to_vec()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == DIGITS && is_sane(id)));
        let elsewhere = std::thread::spawn(|| RequestId::new().as_bytes().to_vec())
            .join()
            .unwrap();
        assert!(!ids.contains(&elsewhere));
    }

    #[test]
    fn only_sane_ids_are_taken_over() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(FIELD, value.parse().unwrap());
            }
            let id = RequestId::of(&headers);
            String::from_utf8(id.as_bytes().to_vec()).unwrap()
        };
        let long = "a".repeat(LONGEST);
        for sane in ["a", "0af7651916cd43dd8448eb211c80319c", "Root=1-2:3", long.as_str()] {
            assert_eq!(of(&[sane]), sane);
        }
        for other in ["", "a b", "a\"b", "a,b", "a\\nb", "{}", "<a>", &"a".repeat(LONGEST + 1)] {
            assert_ne!(of(&[other]), other, "{other}");
        }
        let (first, second) = ("one", "two");
        assert!(![first, second].contains(&of(&[first, second]).as_str()));
    }

    #[tokio::test]
    async fn what_is_done_for_a_request_knows_it() {
        assert_eq!(request_id(), None);
        let request = OnBehalf::new(RequestId::new());
        let known = of(Arc::clone(&request), async {
            let flight = tokio::spawn(same(async {
                drop(waiting());
                request_id()
            }));
            flight.await.unwrap()
        });
        assert_eq!(known.await.as_ref(), Some(&request.id));
        // The flight's waiting is its own: the request waits for the flight.
        assert_eq!(request.waited(), None);
        of(Arc::clone(&request), async { drop(waiting()) }).await;
        assert!(request.waited().is_some());
    }
}
