//! What the fleet says of one object, and its encoding: a flat list of fields, the same in the hash of its key and in a
//! message of the bus, so that the scripts need not read anything nested and numbers keep all their digits.

use serde::{Deserialize, Serialize};

use crate::cache::{Class, Millis};

/// A process of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Random for each process, so that one that was restarted does not take its predecessor's word for its own.
    pub name: String,
    /// Where other nodes reach it, if they can.
    pub url: Option<String>,
}

impl Node {
    /// This process, under a name of its own.
    pub fn new(url: Option<String>) -> Self {
        Node {
            name: format!("{:016x}", super::random()),
            url,
        }
    }
}

/// What orders the words that are said of one key: microseconds since 1970 by Redis's clock, at which a fill took its lock.
/// A later fill has a higher one, and a lower one overwrites nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

/// The fleet's word on one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// [`crate::cache::Object::id`] of the body that is current.
    pub id: u64,
    pub class: Class,
    /// When upstream was last known to have this very body.
    pub checked_at: Millis,
    pub fresh_until: Millis,
    /// Upstream's validator.
    pub etag: Option<String>,
    /// The fence of the fill that said so.
    pub generation: u64,
    /// Who has the body.
    pub node: Node,
    /// The body is in the bucket too.
    pub in_bucket: bool,
}
