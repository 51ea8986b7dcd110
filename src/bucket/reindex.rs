//! `artifactapi reindex`: the catalogue, filled from what the bucket says of itself.

use std::fmt;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;

use super::client::{Client, Failure, Page, within};
use super::find::{Copy, describe};
use super::name;
use crate::catalog::{Catalog, Event};
use crate::config;
use crate::listing::entry;

/// Objects that are asked for at once.
const AT_ONCE: usize = 16;
const LIMIT: Duration = Duration::from_secs(10);
/// Each question is asked so often, after a pause that grows.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
const PROGRESS: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Objects that the catalogue has now.
    pub listed: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// What lies under the prefix and is not this program's.
    pub foreign: u64,
    /// What could not be read.
    pub failed: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} objects ({} MB) are in the catalogue",
            self.listed,
            self.bytes / 1_000_000
        )?;
        if self.foreign > 0 {
            write!(
                f,
                "; {} others are not this program's and were left alone",
                self.foreign
            )?;
        }
        if self.failed > 0 {
            write!(f, "; {} COULD NOT BE READ: run it again", self.failed)?;
        }
        Ok(())
    }
}

/// Puts everything that the bucket holds into a catalogue, and prints how far it has come. What the catalogue knows keeps
/// its hits and when it was first seen; nothing is removed from it.
///
/// # Errors
/// The bucket cannot be listed, or the catalogue does not take what was found. What was found by then is in it.
pub fn from_bucket(settings: &config::S3, open: impl FnOnce() -> Result<Catalog, String>) -> Result<Summary, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("a thread cannot be started: {error}"))?;
    runtime.block_on(async {
        let client = Client::new(settings).map_err(|error| error.to_string())?;
        let catalog = open()?;
        let summary = run(&client, &catalog).await;
        catalog.close().await;
        summary
    })
}

async fn run(client: &Client, catalog: &Catalog) -> Result<Summary, String> {
    let mut summary = Summary::default();
    let mut said = Instant::now();
    let mut next = None;
    loop {
        let listed = async || within(LIMIT, client.list(1000, next.as_deref())).await;
        let page: Page = again(listed)
            .await
            .map_err(|failure| format!("the bucket cannot be listed: {failure}"))?;
        let described = page.objects.iter().map(|object| async move {
            let asked = async || within(LIMIT, describe(client, &object.object)).await;
            (object, again(asked).await)
        });
        let mut described = futures_util::stream::iter(described).buffer_unordered(AT_ONCE);
        while let Some((object, described)) = described.next().await {
            match described {
                Ok(Some(copy)) => {
                    summary.listed += 1;
                    summary.bytes += copy.finished.length;
                    catalog.record(stored(&copy));
                }
                Ok(None) => summary.foreign += 1,
                Err(failure) => {
                    summary.failed += 1;
                    tracing::warn!(object = name::shown(&object.object), %failure, "an object in the bucket cannot be read");
                }
            }
        }
        // The catalogue's queue would drop what is more than it can hold.
        catalog.drain().await.map_err(|error| error.to_string())?;
        if said.elapsed() > PROGRESS {
            println!("{summary} so far");
            said = Instant::now();
        }
        next = page.next;
        if next.is_none() {
            return Ok(summary);
        }
    }
}

fn stored(copy: &Copy) -> Event {
    let seen = i64::try_from(copy.head.stored_at / 1000).unwrap_or(i64::MAX);
    let entry = entry(
        &copy.key,
        &copy.head,
        &copy.finished,
        copy.class,
        copy.fresh_until,
        seen,
    );
    Event::Stored {
        object: Box::new(entry),
    }
}

/// Asks until there is an answer, or a refusal, a few times.
async fn again<T>(ask: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut tries = 1;
    loop {
        match ask().await {
            Err(failure) if tries < TRIES && failure.is_of_service() => {
                tokio::time::sleep(PAUSE * 2u32.pow(tries)).await;
                tries += 1;
            }
            other => return other,
        }
    }
}
