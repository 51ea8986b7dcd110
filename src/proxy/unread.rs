//! How many HTTP/2 streams may wait for their clients. Each holds a piece of a body, and one connection has many; who has
//! waited longest makes room.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use pingora_error::{Error, ErrorType, Result};
use pingora_timeout::timeout;
use tokio::sync::Notify;

/// The longest piece that is handed to a stream at once, and what a stream's own buffer takes besides.
pub const PIECE: usize = 64 << 10;

/// The streams that wait, in the order in which they began to.
#[derive(Debug)]
pub struct Unread {
    most: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    streams: BTreeMap<u64, Arc<Notify>>,
}

impl Unread {
    /// At most `most` streams wait at once.
    pub fn new(most: usize) -> Self {
        Unread {
            most,
            waiting: Mutex::default(),
        }
    }

    /// Writes a piece; the client has `limit` to take it.
    ///
    /// # Errors
    /// The client is gone, took too long, or others need the room more.
    pub async fn write(&self, write: impl Future<Output = Result<()>>, limit: Duration) -> Result<()> {
        let mut write = pin!(write);
        let at_once = std::future::poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await;
        if let Poll::Ready(written) = at_once {
            return written;
        }
        let place = self.enter();
        let waited = timeout(limit, async {
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

    fn enter(&self) -> Place<'_> {
        let pushed_out = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        if waiting.streams.len() >= self.most
            && let Some((_, longest)) = waiting.streams.pop_first()
        {
            longest.notify_one();
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.streams.insert(number, Arc::clone(&pushed_out));
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
        self.unread.waiting.lock().streams.remove(&self.number);
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
            let unread = Unread::new(2);
            let limit = Duration::from_secs(60);
            let mut first = pin!(unread.write(pending(), limit));
            let mut second = pin!(unread.write(pending(), limit));
            std::future::poll_fn(|cx| {
                assert!(first.as_mut().poll(cx).is_pending());
                assert!(second.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            // What is taken at once needs no room.
            unread.write(async { Ok(()) }, limit).await.unwrap();
            let mut third = pin!(unread.write(pending(), limit));
            std::future::poll_fn(|cx| {
                assert!(third.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            assert!(first.await.is_err());
            assert!(timeout(Duration::from_millis(10), second.as_mut()).await.is_err());
            assert_eq!(unread.waiting.lock().streams.len(), 2);
            assert!(unread.write(pending(), Duration::from_millis(1)).await.is_err());
        });
    }
}
