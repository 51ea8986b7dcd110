//! Any HTTP file server: releases, archives, directory trees. Nothing is mutable by nature and nothing is rewritten;
//! the patterns of the remote decide everything, and redirects are followed on the way up.

use super::Format;

/// The format of `package: generic`.
pub struct Generic;

impl Format for Generic {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Form;

    #[test]
    fn everything_is_left_to_the_patterns() {
        for path in [
            "",
            "a/",
            "index.yaml",
            "repodata/repomd.xml",
            "simple/x/",
            "a.tar.gz",
            "-/host/h/x",
        ] {
            assert_eq!(Generic.builtin_class(path), None, "{path}");
            assert_eq!(Generic.governing_path(path), path);
            assert_eq!(Generic.negotiate(path, Some("application/json;q=0")), Some(Form::ONLY));
            assert!(!Generic.varies(path));
        }
    }

    #[test]
    fn content_types_come_from_the_extension() {
        assert_eq!(Generic.content_type("a/b.tar.gz"), "application/gzip");
        assert_eq!(Generic.content_type("a/SHA256SUMS"), "application/octet-stream");
    }
}
