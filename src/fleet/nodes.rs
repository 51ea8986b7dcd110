//! Who is in the fleet now: a hash in which each node writes its URL and the time, by Redis's clock, with every heartbeat.

use std::time::Duration;

use redis::Pipeline;
use serde::{Deserialize, Serialize};

use super::connection::PATIENT;
use super::names::NODES;
use super::word::Fields;
use super::{Fleet, Node};
use crate::breaker::Away;

/// Whoever has been silent for longer is away, and after some hours forgotten.
const SILENT: Duration = Duration::from_secs(10);
const FORGOTTEN: Duration = Duration::from_secs(3600);

#[derive(Serialize, Deserialize)]
struct Entry {
    url: Option<String>,
    /// In microseconds.
    at: u64,
}

impl Fleet {
    /// Adds to a heartbeat that this node is there.
    pub(super) fn sign_in(&self, beat: &mut Pipeline) {
        let entry = Entry {
            url: self.me.url.clone(),
            at: self.redis.now().0,
        };
        let entry = serde_json::to_string(&entry).unwrap_or_default();
        beat.cmd("HSET").arg(NODES).arg(&self.me.name).arg(entry).ignore();
        let kept = FORGOTTEN.as_millis() as u64;
        beat.cmd("PEXPIRE").arg(NODES).arg(kept).ignore();
    }

    /// The other nodes that were there within the last seconds.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn others(&self) -> Result<Vec<Node>, Away> {
        let read = |mut connection| async move {
            redis::cmd("HGETALL")
                .arg(NODES)
                .query_async::<Fields>(&mut connection)
                .await
        };
        let entries = self.redis.ask(PATIENT, read).await?;
        let (mut others, mut forgotten) = (Vec::new(), Vec::new());
        for (name, entry) in entries {
            let entry: Option<Entry> = serde_json::from_str(&entry).ok();
            let silent = entry
                .as_ref()
                .map(|entry| Duration::from_micros(self.redis.now().0.saturating_sub(entry.at)));
            match (entry, silent) {
                (Some(Entry { url, .. }), Some(silent)) if silent < SILENT && name != self.me.name => {
                    others.push(Node { name, url });
                }
                (Some(_), Some(silent)) if silent < FORGOTTEN => {}
                _ => forgotten.push(name),
            }
        }
        if !forgotten.is_empty() {
            let forget = |mut connection| async move {
                let mut forget = redis::cmd("HDEL");
                forget
                    .arg(NODES)
                    .arg(forgotten)
                    .query_async::<()>(&mut connection)
                    .await
            };
            self.redis.ask(PATIENT, forget).await?;
        }
        others.sort_by(|a, b| (&a.url, &a.name).cmp(&(&b.url, &b.name)));
        Ok(others)
    }
}
