//! Any HTTP file server: releases, archives, directory trees. Nothing is mutable by nature and nothing is rewritten;
//! the patterns of the remote decide everything, and redirects are followed on the way up.

use super::Format;
use crate::config::Package;

/// The format of `package: generic`.
pub(super) struct Generic;

static PACKAGE: Package = Package {
    names_packages: false,
    ..Package::named("generic")
};

impl Format for Generic {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::formats::testing::{read, remote};
    use crate::formats::{Form, Location};

    #[test]
    fn everything_is_left_to_the_patterns() {
        let remote = Arc::new(remote("generic", "https://files.example/"));
        for path in ["", "a/", "index.yaml", "repodata/repomd.xml", "simple/x/", "a.tar.gz"] {
            let asset = read(&remote, path, Some("application/json;q=0")).unwrap();
            assert_eq!(
                (asset.nature, asset.form, asset.varies),
                (None, Form::ONLY, false),
                "{path}"
            );
            assert_eq!(asset.governing, path);
            let Location::Upstream(url) = asset.location else {
                panic!("{path}")
            };
            assert_eq!(url.as_str(), format!("https://files.example/{path}"));
        }
        let foreign = read(&remote, "-/host/h.example/x", None).unwrap();
        assert_eq!(foreign.governing, "x");
        let Location::Foreign(elsewhere) = foreign.location else {
            panic!()
        };
        assert_eq!(elsewhere.named, ["https://h.example/x", "http://h.example/x"]);
        assert_eq!(elsewhere.index, None);
        for nothing in ["-/host/", "-/host/a b/x"] {
            assert_eq!(
                read(&remote, nothing, None).unwrap().location,
                Location::Nowhere,
                "{nothing}"
            );
        }
    }

    #[test]
    fn media_types_come_from_the_extension() {
        let remote = Arc::new(remote("generic", "https://files.example/"));
        let media_type = |path| read(&remote, path, None).unwrap().media_type;
        assert_eq!(media_type("a/b.tar.gz"), "application/gzip");
        assert_eq!(media_type("a/SHA256SUMS"), "application/octet-stream");
    }
}
