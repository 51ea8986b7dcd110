//! How the store fares, in numbers.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Store;
use crate::cache::scrub::Scrubbed;

/// Damage is told by `/health` for so long.
const DAMAGE_TOLD: Duration = Duration::from_secs(600);

/// What `/health` and `/metrics` say of the store.
#[derive(Debug, Clone)]
pub struct StoreStats {
    pub disk_bytes: u64,
    pub disk_limit: u64,
    pub memory_bytes: u64,
    pub memory_items: usize,
    pub growing: usize,
    /// Why nothing is stored, if that was so in the last minute.
    pub starved: Option<String>,
    /// Times that something could not be stored.
    pub unstored: u64,
    /// A file that was found damaged or unreadable lately.
    pub damaged: Option<String>,
    /// Files found so.
    pub lost: u64,
    pub scrubbed: Scrubbed,
}

impl Store {
    /// How the store fares now.
    pub fn stats(&self) -> StoreStats {
        let damage = self.damage.lock().clone();
        StoreStats {
            disk_bytes: self.usage.total(),
            disk_limit: self.settings.disk_bytes,
            memory_bytes: self.memory.weight(),
            memory_items: self.memory.len(),
            growing: self.growing.lock().len(),
            starved: self.trouble.told(),
            unstored: self.trouble.failures(),
            damaged: damage
                .filter(|(since, _)| since.elapsed() < DAMAGE_TOLD)
                .map(|(_, which)| which),
            lost: self.lost.load(Relaxed),
            scrubbed: self.scrub.progress(),
        }
    }
}
