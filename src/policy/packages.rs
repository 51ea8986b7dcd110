//! Which packages upstream is asked for: what a company calls its own is never looked for where strangers may call theirs so.

use crate::config::PackagePattern;
use crate::formats::{Asset, Class};

/// Upstream is not asked for an artifact, nor is it served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// 404 where clients ask what there is: they look elsewhere then. 403 at a download, where they stop.
    pub status: u16,
    /// For a person: why.
    pub detail: String,
}

/// Whether `asset` is hidden by `deny_packages` or `allow_packages` of its remote. `deny_packages` wins.
pub fn hidden(asset: &Asset) -> Option<Hidden> {
    // A name that stands for content is what clients download by.
    let is_index = asset.is_index() || asset.nature == Some(Class::Mutable) && !asset.is_pointer();
    reason(asset, is_index).map(|detail| Hidden {
        status: if is_index { 404 } else { 403 },
        detail,
    })
}

/// Whether a service of the registry is hidden, as [`hidden`]: what tells of one package.
pub fn hidden_service(asset: &Asset) -> Option<Hidden> {
    reason(asset, true).map(|detail| Hidden { status: 404, detail })
}

fn reason(asset: &Asset, is_index: bool) -> Option<String> {
    let remote = &asset.remote;
    if remote.allow_packages.is_none() && remote.deny_packages.is_empty() {
        return None;
    }
    let package = asset.package.as_deref();
    let fits = |patterns: &[PackagePattern]| {
        let fits = |name| patterns.iter().any(|pattern| pattern.is_match(name));
        package.is_some_and(fits)
    };
    if let Some(package) = package.filter(|_| fits(&remote.deny_packages)) {
        return Some(format!(
            "`deny_packages` of this remote names package {package}: upstream is never asked for it"
        ));
    }
    if remote.allow_packages.as_deref().is_none_or(fits) {
        return None;
    }
    match package {
        Some(package) => Some(format!(
            "`allow_packages` of this remote does not name package {package}: upstream is not asked for it"
        )),
        // What says which packages there are belongs to none.
        None if is_index => None,
        None => Some(
            "this remote has `allow_packages`, and the path does not tell which package the file belongs to: ask for it \
             by the path that its index names"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Remote;
    use crate::formats::{self, Reading, path, testing};

    /// A remote of this package with these lists.
    fn remote(package: &str, allow: Option<&[&str]>, deny: &[&str]) -> Arc<Remote> {
        let mut remote = testing::remote(package, "https://upstream.example/");
        let normal = remote.package.normal_name;
        remote.allow_packages = allow.map(|allow| {
            let patterns = allow.iter().map(|text| PackagePattern::new(text, normal).unwrap());
            patterns.collect()
        });
        let patterns = deny
            .iter()
            .map(|text| PackagePattern::in_any_case(text, normal).unwrap());
        remote.deny_packages = patterns.collect();
        Arc::new(remote)
    }

    /// The status for a path, as it is received; `None`: it is served. 0: it is no artifact.
    fn status(remote: &Arc<Remote>, target: &str) -> Option<u16> {
        let (raw, query) = target
            .split_once('?')
            .map_or((target, None), |(raw, query)| (raw, Some(query)));
        let Ok(path) = path::parse(raw.as_bytes(), query) else {
            return Some(0);
        };
        let asked = formats::Asked {
            remote,
            method: &http::Method::GET,
            path,
            accept: None,
        };
        match formats::of_remote(remote).read(asked) {
            Reading::Artifact(asset) => hidden(&asset).map(|hidden| hidden.status),
            Reading::PassThrough(asset) => hidden_service(&asset).map(|hidden| hidden.status),
            Reading::Redirect(location) => {
                let folder = raw
                    .trim_end_matches('/')
                    .rsplit_once('/')
                    .map_or("", |(folder, _)| folder);
                let name = location.trim_start_matches("../").trim_start_matches("./");
                let to = format!("{folder}/{name}");
                assert_ne!(to, target);
                status(remote, &to)
            }
            Reading::Refused { .. } | Reading::NotAcceptable => Some(0),
        }
    }

    const SHA: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// Of each package type: a name, what says what there is of it, and its files.
    fn of_one_package() -> Vec<(&'static str, &'static str, Vec<String>, Vec<String>)> {
        let lines = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let docker = format!(
            "corp/lib/manifests/latest corp/lib/manifests/{SHA} corp/lib/blobs/{SHA} corp/lib/manifests/sha256-aa"
        );
        vec![
            (
                "pypi",
                "corp-lib",
                lines(
                    "simple/corp-lib/ simple/corp-lib simple/Corp_Lib/ simple/corp.lib simple/corp--lib/ pypi/Corp_Lib/json \
                     pypi/corp-lib/1.0/json whl/cpu/corp-lib/ root/pypi/+simple/corp_lib/ simple/corp-lib/index.html \
                     simple/corp-lib/?x=y -/host/files.example/simple/corp-lib/ simple/corp-lib/corp_lib-1.0-py3-none-any.whl/",
                ),
                lines(
                    "packages/ab/cd/corp_lib-1.0-py3-none-any.whl packages/Corp.Lib-1.0-1-py3-none-any.whl.metadata \
                     packages/corp-lib-1.0.tar.gz.asc packages/CORP-LIB-1.0.ZIP simple/corp-lib/corp_lib-1.0.tar.gz \
                     packages/corp-lib-1.0-1.tar.gz packages%2Fcorp_lib-1.0.tar.gz packages/corp_lib-1.0.tar.gz/ \
                     packages/corp_lib-1.0.tar.gz.sha256 -/host/files.example/corp_lib-1.0.whl.metadata.asc \
                     root/pypi/+f/abc/corp_lib-1.0.whl integrity/corp-lib/1.0/corp_lib-1.0.whl/provenance \
                     packages/corp_lib-1.0.whl?x=y packages/corp%5Flib-1.0.whl",
                ),
            ),
            (
                "npm",
                "@corp/lib",
                lines(
                    "@corp/lib @corp%2flib @corp%2Flib/ %40corp/lib @corp//lib @corp/lib/1.0.0 @corp%2flib/latest \
                     @Corp/Lib @corp%2F%2Flib api/v1/remote/r/@corp/lib -/package/@corp%2flib/dist-tags \
                     -/package/@corp/lib/dist-tags -/npm/v1/attestations/@corp%2flib@1.0.0 @corp/lib?write=true \
                     -%2Fpackage%2F@corp%2Flib%2Fdist-tags",
                ),
                lines(
                    "@corp/lib/-/lib-1.0.0.tgz @corp%2flib/-/lib-1.0.0.tgz %40corp%2Flib/-/lib-1.0.0.TGZ \
                     download/@corp/lib/1.0.0/abc -/host/r.example/@corp/lib -/host/cdn.example/x/@corp/lib/-/lib-1.0.0.tgz \
                     @corp/lib/-/lib-1.0.0.tgz?cache=0 @corp/lib/-//lib-1.0.0.tgz",
                ),
            ),
            (
                "npm",
                "corp-lib",
                lines("corp-lib corp-lib/ corp-lib/1.0.0 Corp-Lib -/package/corp-lib/dist-tags corp-lib%2F1.0.0"),
                lines(
                    "corp-lib/-/corp-lib-1.0.0.tgz corp-lib-1.0.0.tgz -/host/cdn.example/tarballs/corp-lib-1.0.0.tgz \
                     corp/corp-lib-1.0.0.tgz corp-lib/corp-lib-1.0.0.tgz mirror/corp-lib/-/corp-lib-1.0.0.tgz",
                ),
            ),
            (
                "cargo",
                "corp-lib",
                lines(
                    "co/rp/corp-lib co/rp/corp_lib CO/RP/CORP_LIB co//rp/corp-lib api/v1/crates/corp_lib \
                     api/v1/crates/Corp-Lib/1.0.0",
                ),
                [
                    lines(
                        "crates/corp-lib/corp-lib-1.0.0.crate corp_lib-1.0.0.crate api/v1/crates/corp_lib/1.0.0/download \
                         -/host/static.example/crates/Corp-Lib/1.0.0/download crates/corp-lib/1.0.0%2Fdownload \
                         co/rp/corp-lib/ co%2Frp%2Fcorp-lib",
                    ),
                    vec![format!("crates/corp-lib/1.0.0/download/-/sha256/{}", &SHA[7..])],
                ]
                .concat(),
            ),
            (
                "docker",
                "corp/lib",
                lines(&format!("corp/lib/tags/list?n=5 corp/lib/referrers/{SHA}")),
                lines(&docker),
            ),
            (
                "helm",
                "corp-lib",
                Vec::new(),
                lines(
                    "corp-lib-1.0.0.tgz charts/corp-lib-v1.0.0-rc.1.tgz.prov charts%2Fcorp-lib-1.0.0.tgz \
                     corp-lib-1.0.tgz corp-lib-1.tgz corp-lib.tgz Corp-Lib-1.0.0.TGZ corp-lib-1.0.0.tgz?token=1 \
                     -/host/charts.example/corp-lib-1.0.0.tgz -/query/YT1i/charts/corp-lib-1.0.0.tgz",
                ),
            ),
            (
                "rpm",
                "corp-lib",
                Vec::new(),
                lines(
                    "Packages/corp-lib-1.0-1.el9.x86_64.rpm corp-lib-1.0-1.noarch.RPM Packages%2Fcorp-lib-1.0-1.noarch.rpm \
                     corp-lib-1.0-1_1.0-2.x86_64.drpm Packages/corp-lib-1.0-1.noarch.rpm/",
                ),
            ),
            (
                "alpine",
                "corp-lib",
                Vec::new(),
                lines(
                    "v3/main/x86_64/corp-lib-1.0-r0.apk v3/main/x86_64%2Fcorp-lib-1.0-r0.apk \
                     v3/main/x86_64/Corp-Lib-1.0-r0.APK v3/main/x86_64/corp-lib-1.0-r0.apk/",
                ),
            ),
        ]
    }

    /// What tells of all packages, or of none.
    const OF_NONE: [(&str, &str); 13] = [
        ("pypi", ""),
        ("pypi", "simple/"),
        ("pypi", "root/pypi/+simple/"),
        ("npm", "-/v1/search?text=x"),
        ("npm", "-/npm/v1/security/audits"),
        ("npm", "-/ping"),
        ("cargo", "config.json"),
        ("cargo", "api/v1/crates?q=x"),
        ("helm", "index.yaml"),
        ("helm", "stable/index.yaml"),
        ("rpm", "os/repodata/repomd.xml"),
        ("rpm", "os/repodata/primary.xml.gz"),
        ("alpine", "v3/main/x86_64/APKINDEX.tar.gz"),
    ];

    #[test]
    fn a_name_is_hidden_by_all_its_spellings() {
        for (package, name, indexes, files) in of_one_package() {
            let denied = [
                remote(package, None, &[name]),
                remote(package, Some(&["*"]), &[name]),
                remote(package, None, &["other", "*corp*"]),
                remote(package, Some(&["other*"]), &[]),
                remote(package, Some(&[]), &[]),
            ];
            for remote in &denied {
                for (status_is, paths) in [(404, &indexes), (403, &files)] {
                    for path in paths {
                        assert_eq!(status(remote, path), Some(status_is), "{package} {path} {remote:?}");
                    }
                }
            }
            for remote in [
                remote(package, None, &[]),
                remote(package, None, &["corp", "lib", "corp-lib-1", "other*"]),
                remote(package, Some(&["corp-*", "@[Cc]orp/*", "corp/*", "Corp*"]), &[]),
            ] {
                for path in indexes.iter().chain(&files) {
                    assert_eq!(status(&remote, path), None, "{package} {path} {remote:?}");
                }
            }
        }
    }

    #[test]
    fn what_tells_of_all_packages_stays_and_what_cannot_be_told_is_refused_where_some_are_allowed() {
        for (package, path) in OF_NONE {
            for remote in [
                remote(package, Some(&[]), &["*"]),
                remote(package, Some(&["a"]), &["b"]),
            ] {
                assert_eq!(status(&remote, path), None, "{package} {path}");
            }
        }
        for (package, path) in [
            ("pypi", "files/unknown.bin"),
            ("pypi", "corp-lib.tar.gz"),
            ("npm", "@corp"),
            ("helm", "README.md"),
            ("cargo", "some/thing"),
            ("rpm", "RPM-GPG-KEY"),
            ("alpine", "keys/a.rsa.pub"),
        ] {
            assert_eq!(status(&remote(package, Some(&["*"]), &[]), path), Some(403), "{path}");
            assert_eq!(status(&remote(package, None, &["*"]), path), None, "{path}");
        }
    }

    #[test]
    fn the_reason_is_told() {
        let detail = |allow, deny: &[&str], path: &str| {
            let asset = testing::read(&remote("helm", allow, deny), path, None).unwrap();
            hidden(&asset).unwrap().detail
        };
        let denied = detail(None, &["a"], "a-1.0.0.tgz");
        assert!(
            denied.contains("`deny_packages`") && denied.contains("package a:"),
            "{denied}"
        );
        let others = detail(Some(&["b"]), &[], "a-1.0.0.tgz");
        assert!(
            others.contains("`allow_packages`") && others.contains("package a:"),
            "{others}"
        );
        assert!(detail(Some(&["b"]), &[], "x").contains("which package"));
    }

    /// One path's letters, written otherwise: capitals, percent-encoded, with more slashes.
    fn spelled(path: &str, how: &[u8]) -> String {
        let mut out = String::new();
        for (byte, how) in path.bytes().zip(how.iter().cycle()) {
            match (byte, how % 8) {
                (b'/', 0) => out.push_str("//"),
                (b'/', _) => out.push('/'),
                (_, 1 | 2) => out.push_str(&format!("%{byte:02X}")),
                (_, 3) => out.push_str(&format!("%{byte:02x}")),
                _ => out.push(char::from(byte)),
            }
        }
        out
    }

    /// Another spelling of one name, to this ecosystem, or to some upstream.
    fn renamed(package: &str, name: &str, how: &[u8]) -> String {
        let letters = name.chars().zip(how.iter().cycle());
        let renamed = letters.map(|(letter, how)| match (package, letter, how % 5) {
            ("pypi" | "cargo", '-', 0 | 1) => '_',
            ("pypi", '-', 2) => '.',
            ("pypi" | "cargo" | "npm", letter, 3) => letter.to_ascii_uppercase(),
            _ => letter,
        });
        renamed.collect()
    }

    /// Where a crate's file is in the index.
    fn index_of(name: &str) -> String {
        match name.len() {
            2 => format!("2/{name}"),
            3 => format!("3/{}/{name}", &name[..1]),
            _ => format!("{}/{}/{name}", &name[..2], &name[2..4]),
        }
    }

    proptest! {
        #[test]
        fn no_spelling_of_a_path_gets_past(
            one in any::<proptest::sample::Index>(), path in any::<proptest::sample::Index>(), how in proptest::collection::vec(any::<u8>(), 1..40)
        ) {
            let all = of_one_package();
            let (package, name, indexes, files) = one.get(&all);
            let paths: Vec<&String> = indexes.iter().chain(files).collect();
            let plain = path.get(&paths).split('?').next().unwrap();
            // What is encoded already would be encoded twice: another path.
            prop_assume!(!plain.contains('%') && !plain.starts_with("-/") && !plain.contains("api/v1/remote"));
            let spelled = spelled(plain, &how);
            let status = status(&remote(package, None, &[name]), &spelled);
            prop_assert!(matches!(status, Some(0 | 403 | 404)), "{} {} {:?}", package, spelled, status);
        }

        #[test]
        fn no_spelling_of_a_name_gets_past(
            name in "[a-z]{2,6}(-[a-z]{2,6}){0,2}", major in 0_u8..20, how in proptest::collection::vec(any::<u8>(), 1..40)
        ) {
            for (package, paths) in [
                ("pypi", vec![
                    "simple/NAME/".to_owned(), "pypi/NAME/json".to_owned(), format!("p/NAME-{major}.1.tar.gz"),
                    format!("p/NAME-{major}.1-1.zip"), format!("NAME-{major}.1-py3-none-any.whl"),
                ]),
                ("npm", vec!["NAME".to_owned(), format!("NAME/-/NAME-{major}.0.0.tgz"), format!("@s/NAME/{major}.0.0")]),
                ("cargo", vec![index_of(&renamed("cargo", &name, &how)), format!("crates/NAME/NAME-{major}.0.0.crate"), format!("a/NAME/{major}.0.0/download")]),
                ("helm", vec![format!("c/NAME-{major}.0.0.tgz"), format!("NAME-{major}.2.tgz.prov")]),
            ] {
                let written = renamed(package, &name, &how);
                for path in paths {
                    let denied = match path.starts_with("@s") {
                        true => format!("@s/{name}"),
                        false => name.clone(),
                    };
                    let path = path.replace("NAME", &written);
                    let status = status(&remote(package, None, &[&denied]), &path);
                    prop_assert!(matches!(status, Some(403 | 404)), "{} {} {:?}", package, path, status);
                }
            }
        }
    }
}
