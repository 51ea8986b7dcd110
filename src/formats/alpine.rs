//! Alpine package trees: `{branch}/{repository}/{architecture}/` holds packages and one signed index of them, which must
//! arrive byte for byte. apk 2 reads `APKINDEX.tar.gz`, apk 3 also `Packages.adb`
//! (<https://wiki.alpinelinux.org/wiki/Apk_spec>).

use super::release;
use super::{Asked, Asset, Class, Format, Reading};
use crate::config::Package;

/// The format of `package: alpine`.
pub(super) struct Alpine;

static PACKAGE: Package = Package::named("alpine");

/// Name and version of a package, by the name of its file: `{name}-{version}-r{revision}.apk`.
fn package(path: &str) -> (Option<String>, Option<String>) {
    let path = release::plain(path);
    let stem = release::stem(&path, ".apk");
    stem.and_then(|stem| release::name_and_revised_version(stem, 1)).unzip()
}

impl Format for Alpine {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }

    fn read(&self, asked: Asked<'_>) -> Reading {
        let mut asset = Asset::new(asked.remote, asked.path, |path| path);
        let path = asset.governing.clone();
        let path = path.as_str();
        // The expressions `APKINDEX\.tar\.gz$` and `Packages\.adb$`, searched as every pattern is.
        let is_index = path.ends_with("APKINDEX.tar.gz") || path.ends_with("Packages.adb");
        asset.nature = is_index.then_some(Class::Mutable);
        (asset.package, asset.version) = package(path);
        // An `.apk` here is three gzip members in a row and no Android package: nothing may be tempted to decode it.
        if path.ends_with(".apk") || path.ends_with(".adb") {
            asset.media_type = "application/octet-stream";
        }
        Reading::Artifact(Box::new(asset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::formats::testing::{read, remote};

    fn asset(path: &str) -> Asset {
        read(&Arc::new(remote("alpine", "https://apk.example/")), path, None).unwrap()
    }

    #[test]
    fn indexes_are_mutable_and_packages_are_not() {
        for path in [
            "v3.22/main/x86_64/APKINDEX.tar.gz",
            "APKINDEX.tar.gz",
            "edge/main/aarch64/Packages.adb",
        ] {
            assert_eq!(asset(path).nature, Some(Class::Mutable), "{path}");
        }
        for path in [
            "v3.22/main/x86_64/a-1-r0.apk",
            "APKINDEX.tar.gz.old",
            "APKINDEXxtarxgz",
            "apkindex.tar.gz",
        ] {
            assert_eq!(asset(path).nature, None, "{path}");
        }
    }

    #[test]
    fn content_types() {
        assert_eq!(
            asset("v3/main/x86_64/a-1-r0.apk").media_type,
            "application/octet-stream"
        );
        assert_eq!(asset("v3/main/x86_64/APKINDEX.tar.gz").media_type, "application/gzip");
    }
}
