//! Alpine package trees: `{branch}/{repository}/{architecture}/` holds packages and one signed index of them, which must
//! arrive byte for byte. apk 2 reads `APKINDEX.tar.gz`, apk 3 also `Packages.adb`
//! (<https://wiki.alpinelinux.org/wiki/Apk_spec>).

mod index;
mod segments;

use super::release::{self, ListedBy, ONE_FORM, Tells};
use super::{Asked, Asset, Class, Format, Location, Reading};
use crate::config::Package;

/// The name of an index.
const INDEX: &str = "APKINDEX.tar.gz";

/// The format of `package: alpine`.
pub(super) struct Alpine;

static PACKAGE: Package = Package::named("alpine");

/// Name and version of a package, by the name of its file: `{name}-{version}-r{revision}.apk`.
fn package(path: &str) -> (Option<String>, Option<String>) {
    let path = release::plain(path);
    let stem = release::stem(&path, ".apk");
    stem.and_then(|stem| release::name_and_revised_version(stem, 1)).unzip()
}

/// The index beside a package, which tells what that must turn out to be.
fn listed_by(file: &Asset) -> Option<ListedBy> {
    let path = &file.path;
    let is_package = path.decoded.ends_with(".apk") && path.query.is_none();
    if !is_package || !matches!(file.location, Location::Upstream(_)) {
        return None;
    }
    let folder = path.encoded.rsplit_once('/');
    Some(ListedBy {
        indexes: vec![folder.map_or_else(|| INDEX.to_owned(), |(folder, _)| format!("{folder}/{INDEX}"))],
        forms: ONE_FORM,
        file: path.decoded.clone(),
        steps: 0,
        // It says when a package was built.
        tells_dates: false,
    })
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
        if asset.path.decoded.rsplit('/').next() == Some(INDEX) {
            asset.tells = Some(Tells::Pieces(|path| Box::new(index::Packages::new(path))));
        } else {
            asset.list_by(listed_by);
        }
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
    fn a_package_is_listed_by_the_index_beside_it() {
        let by = asset("v3.22/main/x86_64/a%2Bb-1-r0.apk").listed_by.unwrap();
        assert_eq!(by.indexes, ["v3.22/main/x86_64/APKINDEX.tar.gz"]);
        assert_eq!(by.file, "v3.22/main/x86_64/a+b-1-r0.apk");
        assert_eq!((by.steps, by.tells_dates), (0, false));
        assert_eq!(asset("a-1-r0.apk").listed_by.unwrap().indexes, ["APKINDEX.tar.gz"]);
        assert!(asset("main/APKINDEX.tar.gz").tells.is_some());
        for path in [
            "main/APKINDEX.tar.gz",
            "main/Packages.adb",
            "main/a.apk?x",
            "keys/a.rsa.pub",
        ] {
            assert_eq!(asset(path).listed_by, None, "{path}");
        }
        assert!(asset("main/xAPKINDEX.tar.gz").tells.is_none());
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
