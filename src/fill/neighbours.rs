//! The other nodes, tried at the start and now and then: a wrong secret or URL is found before it is missed, and said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Fills;
use super::node::Peers;
use crate::fleet::{Fleet, Node};

/// How often one is tried that is well.
const EVERY: Duration = Duration::from_secs(30);
/// How often it is looked who is there: those that are new are tried, and those that fail.
const PAUSE: Duration = Duration::from_secs(3);
/// A failure counts from the second time on: a node may be starting, or stopping.
const COUNTS_FROM: u32 = 2;
/// Between two looks whether Redis answers, at the start.
const START_PAUSE: Duration = Duration::from_millis(500);

/// Another node, as it was found last.
#[derive(Debug, Clone)]
pub struct Neighbour {
    pub url: String,
    /// Why this node cannot read from it, and since when.
    pub trouble: Option<(String, Duration)>,
}

#[derive(Debug)]
struct Tried {
    failures: u32,
    why: String,
    since: Instant,
    last: Instant,
}

/// What was found, by URL and name.
#[derive(Debug, Default)]
pub struct Neighbours(Mutex<BTreeMap<(String, String), Tried>>);

impl Neighbours {
    pub fn list(&self) -> Vec<Neighbour> {
        let tried = self.0.lock();
        let neighbours = tried.iter().map(|((url, _), tried)| Neighbour {
            url: url.clone(),
            trouble: (tried.failures >= COUNTS_FROM).then(|| (tried.why.clone(), tried.since.elapsed())),
        });
        neighbours.collect()
    }

    /// Tries them for ever, if nodes can read from one another.
    pub async fn keep_trying(self: Arc<Self>, fills: Arc<Fills>) {
        let shared = &fills.shared;
        let (Some(fleet), Some(peers)) = (&shared.fleet, &shared.peers) else {
            return;
        };
        loop {
            let Ok(others) = fleet.others().await else {
                tokio::time::sleep(START_PAUSE).await;
                continue;
            };
            self.try_those_due(fleet, peers, &others).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_those_due(&self, fleet: &Fleet, peers: &Peers, others: &[Node]) {
        let is_there = |name: &String| others.iter().any(|node| node.name == *name);
        self.0.lock().retain(|(_, name), _| is_there(name));
        for (node, url) in others.iter().filter_map(|node| Some((node, node.url.as_deref()?))) {
            let is_well = |tried: &Tried| tried.failures == 0 && tried.last.elapsed() < EVERY;
            let key = (url.to_owned(), node.name.clone());
            if self.0.lock().get(&key).is_some_and(is_well) {
                continue;
            }
            let found = peers.hello(url).await;
            let trouble = match found {
                Ok((name, _)) if name == node.name => None,
                Ok((name, _)) if name == fleet.me().name => {
                    Some("this very node answers there: that node's ARTIFACTAPI_NODE_URL is not its own".to_owned())
                }
                Ok((_, other)) => Some(format!(
                    "another node answers there, which is known as {}: ARTIFACTAPI_NODE_URL has to be one for each node",
                    other.as_deref().unwrap_or("none")
                )),
                Err(error) => Some(error.to_string()),
            };
            self.note(key, trouble);
        }
    }

    fn note(&self, key: (String, String), trouble: Option<String>) {
        let url = key.0.clone();
        let mut all = self.0.lock();
        let tried = all.entry(key).or_insert_with(|| Tried {
            failures: 0,
            why: String::new(),
            since: Instant::now(),
            last: Instant::now(),
        });
        tried.last = Instant::now();
        let Some(why) = trouble else {
            if tried.failures >= COUNTS_FROM {
                tracing::info!(node = url, "another node can be reached again");
            }
            tried.failures = 0;
            return;
        };
        if tried.failures == 0 {
            tried.since = Instant::now();
        }
        tried.failures = tried.failures.saturating_add(1);
        if tried.failures == COUNTS_FROM || (tried.failures > COUNTS_FROM && tried.why != why) {
            tracing::warn!(
                node = url, %why,
                "another node cannot be read from: what it fetches comes here only when it is in the bucket, or is \
                 fetched again"
            );
        }
        tried.why = why;
    }
}
