//! What is known of a stored object, wherever its body is.

use super::freshness::Class;
use super::head::{Finished, Head, identity};
use super::key::Key;
use super::time::Millis;

/// Everything about a complete object but its body.
#[derive(Debug, Clone)]
pub struct Described {
    pub key: Key,
    /// Names this very body on this node; another body has another one.
    pub id: u64,
    pub head: Head,
    pub finished: Finished,
    pub class: Class,
    /// When upstream was last known to have this very body.
    pub checked_at: Millis,
    pub fresh_until: Millis,
}

impl Described {
    /// Names the content for all nodes, see [`identity`].
    pub fn identity(&self) -> u64 {
        identity(&self.finished, self.head.stands_for.as_ref())
    }
}
