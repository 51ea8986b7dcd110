//! What the metrics show of the store, the catalogue and what stands behind this node.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Api;
use crate::bucket::BucketStatus;
use crate::config::Config;
use crate::fill::neighbours::Neighbour;
use crate::fleet::FleetStatus;
use crate::metrics::{BucketSamples, FleetSamples, Samples};

impl Api {
    /// Samples of all that is counted elsewhere, now.
    pub(super) fn samples(&self, config: &Config) -> Samples {
        let store = self.fills.store.stats();
        let catalog = self.fills.catalog.status();
        let fleet = self.backends.fleet.as_ref().map(|fleet| fleet.status());
        Samples {
            generation: config.generation,
            remotes: config.remotes.keys().cloned().collect(),
            in_flight: self.state.in_flight() as u64,
            fetches: self.fills.upstream.fetches(),
            reloaded: !self.state.last_reload_failed(),
            dependencies: self.backends.standings(),
            disk_takes: store.starved.is_none(),
            tiers: [
                ("disk", store.disk_bytes, store.disk_limit),
                ("memory", store.memory_bytes, config.settings.cache.memory_bytes),
            ],
            memory_objects: store.memory_items as u64,
            growing_objects: store.growing as u64,
            scrub_progress: store.scrubbed.percent as f64 / 100.0,
            scrub_rounds: store.scrubbed.rounds,
            catalogue_queue: catalog.queued as u64,
            catalogue_dropped: catalog.dropped_hits + catalog.dropped_changes,
            unstored: store.unstored,
            lost: store.lost,
            scrubbed_objects: store.scrubbed.objects,
            scrubbed_bytes: store.scrubbed.bytes,
            log_dropped: self.log.as_ref().map_or(0, |log| log.dropped()),
            bucket: self.backends.bucket.as_ref().map(|bucket| of_bucket(&bucket.status())),
            fleet: fleet.as_ref().map(between_nodes),
            nodes: reachable(self.backends.neighbours.list()),
            upstreams_away: self.fills.upstream.away().into_iter().map(|host| host.way).collect(),
        }
    }
}

fn of_bucket(bucket: &BucketStatus) -> BucketSamples {
    BucketSamples {
        takes: bucket.refusing.is_none(),
        queue: [
            ("uploads", bucket.uploads_waiting),
            ("removals", bucket.removals_waiting),
        ],
        queue_bytes: bucket.bytes_waiting,
        oldest_seconds: bucket.oldest_waiting.as_ref().map_or(0, Duration::as_secs),
        done: [
            ("uploads", bucket.uploaded),
            ("failures", bucket.failed),
            ("removals", bucket.removed),
            ("unfit", bucket.unfit),
            ("outdated", bucket.outdated),
            ("missing", bucket.missing),
        ],
        uploaded_bytes: bucket.uploaded_bytes,
    }
}

fn between_nodes(fleet: &FleetStatus) -> FleetSamples {
    FleetSamples {
        done: [
            ("received", fleet.received),
            ("sent", fleet.sent),
            ("locks_taken", fleet.taken),
            ("locks_lost", fleet.lost),
            ("locks_waited_for", fleet.waited),
        ],
        behind: fleet.behind,
        queue: (fleet.outbox + fleet.unsent_flushes) as u64,
        listening: fleet.listening,
    }
}

fn reachable(neighbours: Vec<Neighbour>) -> BTreeMap<String, bool> {
    let mut nodes = BTreeMap::new();
    for node in neighbours {
        // Two that are known by one URL are in trouble both.
        *nodes.entry(node.url).or_insert(true) &= node.trouble.is_none();
    }
    nodes
}
