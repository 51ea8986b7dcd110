//! How many HTTP/2 streams may wait for their clients. Each holds a piece of a body, or several, and one connection has
//! many; who has waited longest makes room.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use pingora_error::{Error, ErrorType, Result};
use pingora_timeout::timeout;
use tokio::sync::Notify;

use crate::config::ClientSettings;

/// The longest piece that is handed to a stream at once, and what a stream's own buffer takes besides.
pub const PIECE: usize = 64 << 10;

/// The streams that wait, in the order in which they began to.
#[derive(Debug)]
pub struct Unread {
    most: usize,
    /// For a client to take a piece.
    limit: Duration,
    waiting: Mutex<Waiting>,
}

/// All streams of this process.
static SHARED: OnceLock<Unread> = OnceLock::new();

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// Pieces, of all streams together.
    held: usize,
    streams: BTreeMap<u64, (usize, Arc<Notify>)>,
}

impl Unread {
    /// That of all streams of this process.
    pub fn shared() -> &'static Self {
        Self::limit(&ClientSettings::default())
    }

    /// Sets the limits of the process. Settings are not reloaded: the first ones count.
    pub fn limit(limits: &ClientSettings) -> &'static Self {
        SHARED.get_or_init(|| Self::new(limits.http2_unread, limits.write_timeout))
    }

    /// At most `most` pieces wait at once, each for `limit`.
    fn new(most: usize, limit: Duration) -> Self {
        Unread {
            most,
            limit,
            waiting: Mutex::default(),
        }
    }

    /// Writes a piece of a body of which so many are `held`.
    ///
    /// # Errors
    /// The client is gone, took too long, or others need the room more.
    pub async fn write(&self, write: impl Future<Output = Result<()>>, held: usize) -> Result<()> {
        let mut write = pin!(write);
        let at_once = std::future::poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await;
        if let Poll::Ready(written) = at_once {
            return written;
        }
        let place = self.enter(held);
        let waited = timeout(self.limit, async {
            tokio::select! {
                biased;
                written = write => written,
                () = place.pushed_out.notified() => {
                    Err(Error::explain(ErrorType::WriteTimedout, "too many streams wait for their clients"))
                }
            }
        });
        match waited.await {
            Ok(written) => written,
            Err(_) => Err(Error::explain(ErrorType::WriteTimedout, "the client reads too slowly")),
        }
        .map_err(|error| error.into_down())
    }

    fn enter(&self, held: usize) -> Place<'_> {
        let pushed_out = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        while waiting.held + held > self.most
            && let Some((_, (freed, longest))) = waiting.streams.pop_first()
        {
            waiting.held -= freed;
            longest.notify_one();
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.held += held;
        waiting.streams.insert(number, (held, Arc::clone(&pushed_out)));
        Place {
            unread: self,
            number,
            pushed_out,
        }
    }
}

/// A stream that waits.
struct Place<'a> {
    unread: &'a Unread,
    number: u64,
    pushed_out: Arc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.unread.waiting.lock();
        if let Some((held, _)) = waiting.streams.remove(&self.number) {
            waiting.held -= held;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[test]
    fn who_waits_longest_makes_room() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let unread = Unread::new(2, Duration::from_secs(60));
            let mut first = pin!(unread.write(pending(), 1));
            let mut second = pin!(unread.write(pending(), 1));
            std::future::poll_fn(|cx| {
                assert!(first.as_mut().poll(cx).is_pending());
                assert!(second.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            // What is taken at once needs no room.
            unread.write(async { Ok(()) }, 1).await.unwrap();
            let mut third = pin!(unread.write(pending(), 1));
            std::future::poll_fn(|cx| {
                assert!(third.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            assert!(first.await.is_err());
            assert!(timeout(Duration::from_millis(10), second.as_mut()).await.is_err());
            assert_eq!(unread.waiting.lock().streams.len(), 2);
            // One that holds much takes the room of several.
            let mut long = pin!(unread.write(pending(), 2));
            std::future::poll_fn(|cx| {
                assert!(long.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            assert!(second.await.is_err());
            assert!(third.await.is_err());
            assert_eq!(unread.waiting.lock().held, 2);
            assert_eq!(unread.waiting.lock().streams.len(), 1);
            let hasty = Unread::new(2, Duration::from_millis(1));
            assert!(hasty.write(pending(), 1).await.is_err());
            assert_eq!(hasty.waiting.lock().held, 0);
        });
    }
}
