//! The names of all keys that the fleet has in Redis.

use crate::cache::Key;

/// A stream: what nodes did.
pub(super) const NEWS: &str = "artifactapi:news";
/// A hash: the number of the last message in [`NEWS`], and a random name, which is another one when Redis has lost its data.
pub(super) const EPOCH: &str = "artifactapi:epoch";
/// A sorted set: what nodes were asked to forget, by when.
pub(super) const FLUSHES: &str = "artifactapi:flushes";
/// A hash: who is in the fleet, by name.
pub(super) const NODES: &str = "artifactapi:nodes";

/// A hash: who fills `key` now.
pub(super) fn fill(key: &Key) -> String {
    format!("artifactapi:fill:{}", hex::encode(key.hash))
}

/// A hash: the fleet's word on `key`.
pub(super) fn word(key: &Key) -> String {
    format!("artifactapi:fresh:{}", hex::encode(key.hash))
}

/// A text: one of upstream's tokens.
pub(super) fn token(name: &str) -> String {
    format!("artifactapi:token:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written as by the version that had no file of their names.
    #[test]
    fn names_are_those_of_the_version_before() {
        let key = Key::read("pypi\0simple/six/\0json").unwrap();
        assert_eq!(fill(&key), "artifactapi:fill:470d895188b55f482cdf1e1891bb3095");
        assert_eq!(word(&key), "artifactapi:fresh:470d895188b55f482cdf1e1891bb3095");
        assert_eq!(token("0a1b"), "artifactapi:token:0a1b");
        let rest = [NEWS, EPOCH, FLUSHES, NODES];
        assert_eq!(
            rest.map(|name| name.strip_prefix("artifactapi:")),
            ["news", "epoch", "flushes", "nodes"].map(Some)
        );
    }
}
