//! A body on its way to this node.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use crate::bucket::Pieces;
use crate::cache::Finished;

/// A source that says nothing for so long is given up, whatever else speaks for it.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// A body as it comes, and what the whole of it must turn out to be.
pub struct Transfer {
    /// They end with an error when nothing more is to be expected, so that whoever reads them needs no clock.
    pub pieces: Pieces,
    /// Known at once, or when all pieces were read, or never.
    pub whole: Arc<OnceLock<Finished>>,
}

impl Transfer {
    /// A body that must turn out to be what is known of it, if anything is.
    pub fn new(pieces: Pieces, whole: Option<Finished>) -> Transfer {
        Transfer {
            pieces,
            whole: Arc::new(whole.map_or_else(OnceLock::new, OnceLock::from)),
        }
    }

    /// The body, of which each piece is waited for by `wait`.
    pub(super) fn waited_for<W, F>(self, wait: W) -> Transfer
    where
        W: Fn(Pieces) -> F + Send + 'static,
        F: Future<Output = io::Result<(Option<io::Result<Bytes>>, Pieces)>> + Send + 'static,
    {
        let pieces = stream::unfold(Some((wait, self.pieces)), |state| async move {
            let (wait, pieces) = state?;
            match wait(pieces).await {
                Ok((piece, pieces)) => Some((piece?, Some((wait, pieces)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Transfer {
            pieces: pieces.boxed(),
            whole: self.whole,
        }
    }

    /// The body, given up after [`SILENCE`].
    pub(super) fn patiently(self) -> Transfer {
        self.waited_for(|mut pieces| async move {
            let piece = tokio::time::timeout(SILENCE, pieces.next()).await?;
            Ok((piece, pieces))
        })
    }
}
