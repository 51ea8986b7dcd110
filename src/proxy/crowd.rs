//! How many connections clients have, in all and from each address, and who is turned away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::ClientSettings;

/// The connections that there are.
#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<Counts>);

/// Between two complaints that there are too many.
const COMPLAINTS: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    complained: Option<Instant>,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection among them, until it is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    crowd: Arc<Crowd>,
    address: Option<IpAddr>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.crowd.0.lock();
        counts.all -= 1;
        if let Some(address) = self.address
            && let Some(count) = counts.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&address);
            }
        }
    }
}

impl Crowd {
    /// Whether it is time to say that somebody was turned away: not for each of a flood.
    pub(super) fn may_complain(&self) -> bool {
        let mut counts = self.0.lock();
        let is_due = counts.complained.is_none_or(|last| last.elapsed() >= COMPLAINTS);
        if is_due {
            counts.complained = Some(Instant::now());
        }
        is_due
    }

    /// Counts a connection from `address`, if there is room for it; `None` for one that only the bound of all holds for.
    pub(super) fn admit(self: &Arc<Self>, limits: &ClientSettings, address: Option<IpAddr>) -> Option<Admitted> {
        let mut counts = self.0.lock();
        if counts.all >= limits.connections {
            return None;
        }
        if let Some(address) = address {
            let count = counts.by_address.entry(address).or_default();
            if *count >= limits.connections_per_address {
                return None;
            }
            *count += 1;
        }
        counts.all += 1;
        Some(Admitted {
            crowd: Arc::clone(self),
            address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_in_all_and_for_each_address() {
        let limits = ClientSettings {
            connections: 4,
            connections_per_address: 2,
            ..ClientSettings::default()
        };
        let crowd = Arc::new(Crowd::default());
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let first = crowd.admit(&limits, Some(one)).unwrap();
        let second = crowd.admit(&limits, Some(one)).unwrap();
        assert!(crowd.admit(&limits, Some(one)).is_none());
        let others = [
            crowd.admit(&limits, Some(two)).unwrap(),
            crowd.admit(&limits, None).unwrap(),
        ];
        assert!(crowd.admit(&limits, None).is_none(), "four are there");
        drop(first);
        let again = crowd.admit(&limits, Some(one)).unwrap();
        drop((second, others, again));
        let counts = crowd.0.lock();
        assert!(counts.all == 0 && counts.by_address.is_empty());
    }
}
