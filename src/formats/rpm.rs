//! RPM repositories as `createrepo_c` writes them and dnf (librepo) reads them: `repodata/repomd.xml` names the other
//! metadata files with their checksums. Those that carry the checksum in their name never change; those with a fixed
//! name (`primary.xml.gz`, `comps.xml`) change together with their `repomd.xml`. Nothing is rewritten: the set is signed.

mod repomd;

use super::release;
use super::{Asked, Asset, Binding, Class, Format, Reading};
use crate::config::Package;
use repomd::Repomd;

/// The format of `package: rpm`.
pub(super) struct Rpm;

static PACKAGE: Package = Package::named("rpm");

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
    use super::*;

    const SHA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

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
