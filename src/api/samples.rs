//! What the metrics show of the store, the catalogue and what stands behind this node.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Api;
use crate::bucket::BucketStatus;
use crate::config::Config;
use crate::fill::neighbours::Neighbour;
use crate::fleet::FleetStatus;
use crate::metrics::{BucketSamples, Samples};

impl Api {
    /// Samples of all that is counted elsewhere, now.
    pub(super) fn samples(&self, config: &Config) -> Samples {
        let store = self.fills.store.stats();
        let catalog = self.fills.catalog.status();
        let fleet = self.backends.fleet.as_ref().map(|fleet| fleet.status());
        let mut tiers = vec![
            ("disk", "bytes", store.disk_bytes),
            ("disk", "limit_bytes", store.disk_limit),
            ("disk", "scrubbed_percent", store.scrubbed.percent),
            ("disk", "scrub_rounds", store.scrubbed.rounds),
            ("memory", "bytes", store.memory_bytes),
            ("memory", "objects", store.memory_items as u64),
            ("growing", "objects", store.growing as u64),
            ("catalogue", "queued", catalog.queued as u64),
            ("catalogue", "dropped", catalog.dropped_hits + catalog.dropped_changes),
        ];
        if let Some(fleet) = &fleet {
            tiers.push(("fleet", "behind", fleet.behind));
            tiers.push(("fleet", "outbox", (fleet.outbox + fleet.unsent_flushes) as u64));
            tiers.push(("fleet", "listening", u64::from(fleet.listening)));
        }
        Samples {
            generation: config.generation,
            reloaded: !self.state.last_reload_failed(),
            dependencies: self.backends.standings(),
            disk_takes: store.starved.is_none(),
            tiers,
            unstored: store.unstored,
            lost: store.lost,
            scrubbed_objects: store.scrubbed.objects,
            scrubbed_bytes: store.scrubbed.bytes,
            bucket: self.backends.bucket.as_ref().map(|bucket| of_bucket(&bucket.status())),
            fleet: fleet.as_ref().map(between_nodes),
            nodes: reachable(self.backends.neighbours.list()),
        }
    }
}

fn of_bucket(bucket: &BucketStatus) -> BucketSamples {
    BucketSamples {
        takes: bucket.refusing.is_none(),
        waiting: [
            ("uploads", bucket.uploads_waiting),
            ("upload_bytes", bucket.bytes_waiting),
            ("removals", bucket.removals_waiting),
            (
                "oldest_upload_seconds",
                bucket.oldest_waiting.as_ref().map_or(0, Duration::as_secs),
            ),
        ],
        done: [
            ("uploads", bucket.uploaded),
            ("uploaded_bytes", bucket.uploaded_bytes),
            ("failures", bucket.failed),
            ("removals", bucket.removed),
            ("unfit", bucket.unfit),
            ("outdated", bucket.outdated),
            ("missing", bucket.missing),
        ],
    }
}

fn between_nodes(fleet: &FleetStatus) -> [(&'static str, u64); 5] {
    [
        ("received", fleet.received),
        ("sent", fleet.sent),
        ("locks_taken", fleet.taken),
        ("locks_lost", fleet.lost),
        ("locks_waited_for", fleet.waited),
    ]
}

fn reachable(neighbours: Vec<Neighbour>) -> BTreeMap<String, bool> {
    let mut nodes = BTreeMap::new();
    for node in neighbours {
        // Two that are known by one URL are in trouble both.
        *nodes.entry(node.url).or_insert(true) &= node.trouble.is_none();
    }
    nodes
}
