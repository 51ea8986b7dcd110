//! RPM repositories as `createrepo_c` writes them and dnf (librepo) reads them: `repodata/repomd.xml` names the other
//! metadata files with their checksums. Those that carry the checksum in their name never change; those with a fixed
//! name (`primary.xml.gz`, `comps.xml`) change together with their `repomd.xml`. Nothing is rewritten: the set is signed.

mod primary;
mod repomd;
mod xml;

use super::release::{self, ListedBy, ONE_FORM, Tells};
use super::{Asked, Asset, Binding, Class, Format, Location, Reading};
use crate::cache::Expected;
use crate::config::Package;
use primary::Primary;
use repomd::Repomd;

/// The format of `package: rpm`.
pub(super) struct Rpm;

static PACKAGE: Package = Package::named("rpm");

/// In so many folders above a package its repository is looked for.
const MAX_FOLDERS: usize = 12;

impl Format for Rpm {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }

    fn read(&self, asked: Asked<'_>) -> Reading {
        let mut asset = Asset::new(asked.remote, asked.path, |path| path);
        asset.nature = nature(&asset.governing);
        // Of what lies there only metadata has a nature.
        asset.lists = asset.nature.is_some();
        asset.binding = binding(&asset.path.decoded);
        (asset.package, asset.version) = package(&asset.governing);
        asset.tells = tells(&asset.path.decoded);
        asset.list_by(listed_by);
        if asset.path.decoded.ends_with(".drpm") {
            asset.media_type = "application/x-rpm";
        }
        Reading::Artifact(Box::new(asset))
    }
}

/// Name and version of a package, by the name of its file: `{name}-{version}-{release}.{architecture}.rpm`; of what leads from
/// one version to another, `{name}-{version}-{release}_{version}-{release}.{architecture}.drpm`, both.
fn package(path: &str) -> (Option<String>, Option<String>) {
    let path = release::plain(path);
    let whole = release::stem(&path, ".rpm").map(|stem| (stem, 1));
    let delta = || release::stem(&path, ".drpm").map(|stem| (stem, 2));
    let parts = whole.or_else(delta).and_then(|(stem, hyphens)| {
        let (stem, _architecture) = stem.rsplit_once('.')?;
        release::name_and_revised_version(stem, hyphens)
    });
    parts.unzip()
}

fn nature(path: &str) -> Option<Class> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let in_repodata = folder == "repodata" || folder.ends_with("/repodata") || path.contains("/repodata/");
    let in_repodata = in_repodata || path.starts_with("repodata/");
    if in_repodata && named_by_checksum(name) {
        return Some(Class::Immutable);
    }
    // A package is no metadata, wherever someone puts it.
    let package = name.ends_with(".rpm") || name.ends_with(".drpm");
    let mutable = path.ends_with("repomd.xml") || path.ends_with("Packages.gz") || (in_repodata && !package);
    mutable.then_some(Class::Mutable)
}

fn binding(path: &str) -> Binding {
    let Some((folder, name)) = path.rsplit_once('/') else {
        return Binding::Alone;
    };
    if folder != "repodata" && !folder.ends_with("/repodata") {
        return Binding::Alone;
    }
    match name {
        "repomd.xml" => Binding::Manifest(|manifest| Box::new(Repomd::new(manifest))),
        name if named_by_checksum(name) => Binding::Alone,
        _ => Binding::Member(vec![format!("{folder}/repomd.xml")]),
    }
}

/// How metadata is read to what it tells of files: the manifest, and the list of packages under any of its names.
fn tells(path: &str) -> Option<Tells> {
    let (folder, name) = path.rsplit_once('/')?;
    let in_repodata = folder == "repodata" || folder.ends_with("/repodata");
    let plain = named_by_checksum(name).then(|| name.split_once('-')).flatten();
    match plain.map_or(name, |(_, plain)| plain) {
        _ if !in_repodata => None,
        "repomd.xml" => Some(Tells::Pieces(|path| Box::new(repomd::Listed::new(path)))),
        plain if plain.starts_with("primary.xml") => Some(Tells::Pieces(|path| Box::new(Primary::new(path)))),
        _ => None,
    }
}

/// What says which digest a file has: of a package the list that the manifest of a repository names, in which one of its folders
/// is; of metadata that is named by its checksum the manifest itself.
fn listed_by(file: &Asset) -> Option<ListedBy> {
    let (encoded, decoded) = (file.path.encoded.as_str(), file.path.decoded.as_str());
    if !matches!(file.location, Location::Upstream(_)) || file.path.query.is_some() {
        return None;
    }
    let (folder, name) = encoded.rsplit_once('/').unwrap_or(("", encoded));
    let (indexes, steps) = if file.nature == Some(Class::Immutable) {
        (vec![format!("{folder}/repomd.xml")], 0)
    } else if name.ends_with(".rpm") {
        // From above: a manifest there is that of many packages, and what is asked for below it in vain differs from package
        // to package.
        let ends = encoded.match_indices('/').map(|(at, _)| at + 1);
        let roots = std::iter::once(0).chain(ends).take(MAX_FOLDERS);
        let manifest = |end| format!("{}repodata/repomd.xml", &encoded[..end]);
        (roots.map(manifest).collect(), 1)
    } else {
        return None;
    };
    Some(ListedBy {
        indexes,
        forms: ONE_FORM,
        file: decoded.to_owned(),
        steps,
        // It says when a package was built.
        tells_dates: false,
    })
}

/// A checksum as metadata writes it. MD5 is none: who likes makes two files with one.
fn digest(kind: &str, checksum: &str) -> Option<Expected> {
    match kind {
        "sha" | "sha1" => Expected::new("sha1", checksum),
        kind => Expected::new(kind, checksum),
    }
}

/// `[0-9a-f]{32,128}-…`: the checksum that `createrepo_c --unique-md-filenames` puts in front.
fn named_by_checksum(name: &str) -> bool {
    let digits = name
        .bytes()
        .take_while(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        .count();
    (32..=128).contains(&digits) && name.as_bytes().get(digits) == Some(&b'-') && name.len() > digits + 1
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::formats::testing::{read, remote};

    const SHA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn asset(path: &str) -> Asset {
        read(&Arc::new(remote("rpm", "https://rpm.example/")), path, None).unwrap()
    }

    #[test]
    fn a_package_is_listed_by_a_repository_above_it_and_metadata_by_its_own() {
        let by = asset("9/os/Packages/a+b-1~x-1.noarch.rpm").listed_by.unwrap();
        let manifests = ["", "9/", "9/os/", "9/os/Packages/"].map(|root| format!("{root}repodata/repomd.xml"));
        assert_eq!(by.indexes, manifests);
        assert_eq!(by.file, "9/os/Packages/a+b-1~x-1.noarch.rpm");
        assert_eq!((by.steps, by.tells_dates), (1, false));
        let metadata = format!("9/os/repodata/{SHA}-primary.xml.zst");
        let by = asset(&metadata).listed_by.unwrap();
        assert_eq!(by.indexes, ["9/os/repodata/repomd.xml"]);
        assert_eq!((by.file, by.steps), (metadata, 0));
        let deep = asset(&format!("{}a-1-1.noarch.rpm", "a/".repeat(100)));
        assert_eq!(deep.listed_by.unwrap().indexes.len(), MAX_FOLDERS);
        // Fixed names are verified by the set, and others are named nowhere.
        for path in [
            "repodata/primary.xml.gz",
            "repodata/repomd.xml",
            "a-1-1_2-1.noarch.drpm",
            "RPM-GPG-KEY",
            "a.rpm?x",
        ] {
            assert_eq!(asset(path).listed_by, None, "{path}");
        }
    }

    #[test]
    fn what_tells_of_files() {
        for name in [
            "repomd.xml",
            "primary.xml",
            "primary.xml.gz",
            &format!("{SHA}-primary.xml.zst"),
        ] {
            assert!(asset(&format!("os/repodata/{name}")).tells.is_some(), "{name}");
            assert!(asset(&format!("os/{name}")).tells.is_none(), "{name}");
        }
        for name in [
            "repomd.xml.asc",
            "filelists.xml.gz",
            &format!("{SHA}-primary.sqlite.bz2"),
            "x-primary.xml",
        ] {
            assert!(asset(&format!("os/repodata/{name}")).tells.is_none(), "{name}");
        }
    }

    #[test]
    fn classes() {
        let immutable = [
            format!("9/BaseOS/x86_64/os/repodata/{SHA}-primary.xml.zst"),
            format!("repodata/{SHA}-filelists.sqlite.bz2"),
            format!("repodata/{}-comps.xml", &SHA[..32]),
        ];
        for path in immutable {
            assert_eq!(nature(&path), Some(Class::Immutable), "{path}");
        }
        let mutable = [
            "9/BaseOS/x86_64/os/repodata/repomd.xml",
            "repodata/repomd.xml.asc",
            "repodata/repomd.xml.key",
            "repodata/primary.xml.gz",
            "os/repodata/comps.xml",
            "somewhere/repomd.xml",
            "dists/stable/Packages.gz",
        ];
        for path in mutable {
            assert_eq!(nature(path), Some(Class::Mutable), "{path}");
        }
        let neither = [
            format!("os/{SHA}-primary.xml.zst"),
            "os/Packages/a-1-1.x86_64.rpm".to_owned(),
            "repodata/a-1-1.x86_64.rpm".to_owned(),
            "notrepodata/primary.xml.gz".to_owned(),
            "RPM-GPG-KEY".to_owned(),
        ];
        for path in neither {
            assert_eq!(nature(&path), None, "{path}");
        }
        // Too short, too long, upper case, nothing behind: a fixed name like any other.
        for name in [&SHA[..31], &SHA.repeat(3)[..129], &SHA.to_uppercase()] {
            assert_eq!(
                nature(&format!("repodata/{name}-primary.xml")),
                Some(Class::Mutable),
                "{name}"
            );
        }
        assert_eq!(nature(&format!("repodata/{SHA}-")), Some(Class::Mutable));
    }
}
