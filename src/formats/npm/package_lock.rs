//! `package-lock.json` of npm (<https://docs.npmjs.com/cli/configuring-npm/package-lock-json>), in all its versions: the tarballs
//! that `npm ci` asks a registry for.

use serde_json::{Map, Value};

use super::super::json::whole::{JsonObject, json_text};
use super::super::links::{PATH, decode_once, normal};
use super::ABBREVIATED;
use crate::config::Remote;
use crate::formats::order::{Field, Holds, Step, Term};

/// `package_lock: {…}`.
pub(super) const PACKAGE_LOCK: Term = Term {
    field: Field {
        name: "package_lock",
        flag: "package-lock",
        value: "FILE",
        help: "A package-lock.json: all that it names of the registry",
        holds: Holds::Json,
    },
    refined_by: &[Field {
        name: "packuments",
        flag: "packuments",
        value: "",
        help: "With a package-lock.json, the packages' documents too: `npm ci` can do without, `npm install` cannot",
        holds: Holds::Yes,
    }],
    read: |remote, given| {
        let packages = packages(given.object("package_lock"))?;
        let mut steps = Vec::new();
        for package in packages {
            if given.is_set("packuments") {
                steps.push(Step {
                    accept: ABBREVIATED.accept,
                    ..Step::file(encoded(&package.name))
                });
            }
            steps.extend(package.step(remote));
        }
        Ok(steps)
    },
};

/// Levels of a lock of version 1.
const MAX_DEPTH: usize = 64;

/// A package of a lock.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    /// Where it was found when the lock was made.
    resolved: Option<String>,
}

/// # Errors
/// The object is no lock.
fn packages(lock: Option<&Map<String, Value>>) -> Result<Vec<Package>, String> {
    let lock = lock.ok_or("`package_lock` is not an object")?;
    let mut found = Vec::new();
    if let Some(packages) = lock.get("packages").and_then(Value::as_object) {
        for (place, package) in packages {
            // What is not below such a folder is the project itself, or a part of it.
            let Some((_, name)) = place.rsplit_once("node_modules/") else {
                continue;
            };
            let name = package["name"].as_str().unwrap_or(name);
            found.extend(one(name, package));
        }
    } else if let Some(dependencies) = lock.get("dependencies").and_then(Value::as_object) {
        nested(dependencies, MAX_DEPTH, &mut found)?;
    } else if !lock.contains_key("lockfileVersion") {
        return Err(
            "`package_lock` is no package-lock.json: it has no `packages`, `dependencies` or `lockfileVersion`"
                .to_owned(),
        );
    }
    Ok(found)
}

fn nested(dependencies: &Map<String, Value>, depth: usize, found: &mut Vec<Package>) -> Result<(), String> {
    if depth == 0 {
        return Err("`package_lock` is nested too deeply".to_owned());
    }
    for (name, package) in dependencies {
        // An alias: `npm:real@1.0.0`.
        let alias = package["version"]
            .as_str()
            .and_then(|version| version.strip_prefix("npm:"));
        match alias.and_then(|alias| alias.rsplit_once('@')) {
            Some((real, version)) => {
                let mut package = package.clone();
                package["version"] = Value::from(version);
                found.extend(one(real, &package));
            }
            None => found.extend(one(name, package)),
        }
        if let Some(inner) = package["dependencies"].as_object() {
            nested(inner, depth - 1, found)?;
        }
    }
    Ok(())
}

/// `None`: it comes with another package, or from this machine.
fn one(name: &str, package: &Value) -> Option<Package> {
    let is_set = |flag: &str| package[flag] == true;
    let version = package["version"].as_str()?;
    let resolved = package["resolved"].as_str();
    let is_local = [Some(version), resolved]
        .into_iter()
        .flatten()
        .any(|text| text.starts_with("file:"));
    (!is_set("link") && !is_set("inBundle") && !is_set("bundled") && !is_local).then(|| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        resolved: resolved.map(str::to_owned),
    })
}

impl Package {
    fn step(self, remote: &Remote) -> Option<Step> {
        let Package {
            name,
            version,
            resolved,
        } = self;
        match resolved
            .as_deref()
            .filter(|url| url.starts_with("http://") || url.starts_with("https://"))
        {
            Some(url) => Some(match below(&remote.name, &name, url) {
                Some(path) => Step::file(path),
                None => Step::refused(
                    url,
                    "it is no registry's tarball of this package: npm gets it elsewhere",
                ),
            }),
            None if semver::Version::parse(&version).is_err() || resolved.is_some() => {
                let from = resolved.unwrap_or(version);
                Some(Step::refused(
                    format!("{name}@{from}"),
                    "it does not come from a registry",
                ))
            }
            None => {
                let (remote, package) = (remote.name.clone(), name.clone());
                Some(Step::document(encoded(&name), ABBREVIATED.accept, move |packument| {
                    tarball(&remote, &package, &version, packument)
                }))
            }
        }
    }
}

/// The path of a tarball below a remote, as npm asks for it that was given `url` by a lock and another registry by its
/// configuration: what follows a remote's root, else what a registry has.
fn below(remote: &str, name: &str, url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let (_, path) = rest.split_once('/')?;
    let path = path.split('#').next()?;
    if let Some((_, path)) = path.split_once(&format!("api/v1/remote/{remote}/")) {
        return Some(path.to_owned());
    }
    let plain = decode_once(path.split('?').next()?)
        .replace("%2F", "/")
        .replace("%2f", "/");
    let at = plain.rfind(&format!("{name}/-/"))?;
    let is_whole = at == 0 || plain.as_bytes().get(at - 1) == Some(&b'/');
    is_whole.then(|| normal(&plain[at..], PATH))
}

/// The tarball of a version, as its packument here names it.
fn tarball(remote: &str, name: &str, version: &str, packument: &[u8]) -> Result<Vec<Step>, String> {
    let text = json_text(packument).map_err(|error| error.to_string())?;
    let packument = JsonObject::read(text).map_err(|error| format!("the packument is no JSON object: {error}"))?;
    let versions = packument.object("versions").unwrap_or_default();
    let described = versions
        .object(version)
        .ok_or_else(|| format!("{name} has no version {version} here"))?;
    let url = described
        .object("dist")
        .and_then(|dist| Some(dist.text("tarball")?.into_owned()));
    let path = url.and_then(|url| below(remote, name, &url));
    let path = path.ok_or_else(|| format!("the packument names no tarball of {name} {version} below this remote"))?;
    Ok(vec![Step::file(path)])
}

/// The path of a package's document.
fn encoded(name: &str) -> String {
    normal(name, PATH)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::formats::order;
    use crate::formats::testing::remote;

    fn steps(order: Value) -> Result<Vec<String>, String> {
        let remote = remote("npm", "https://registry.test/npm/");
        let steps = order::read(&remote, &[PACKAGE_LOCK], order.as_object().unwrap())?;
        Ok(steps.iter().map(|step| format!("{step:?}")).collect())
    }

    #[test]
    fn each_package_of_a_lock_is_a_tarball() {
        let lock = json!({"lockfileVersion": 3, "packages": {
            "": {"name": "project", "version": "1.0.0"},
            "packages/part": {"name": "part", "version": "1.0.0"},
            "node_modules/part": {"resolved": "packages/part", "link": true},
            "node_modules/plain": {"version": "1.0.0", "resolved": "https://registry.test/npm/plain/-/plain-1.0.0.tgz"},
            "node_modules/plain/node_modules/@s/in": {"version": "2.0.0", "resolved": "https://elsewhere.test/@s/in/-/in-2.0.0.tgz"},
            "node_modules/alias": {"name": "real", "version": "3.0.0", "resolved": "https://x.test/real/-/real-3.0.0.tgz"},
            "node_modules/ours": {"version": "1.0.0", "resolved": "http://localhost:8000/api/v1/remote/r/-/host/f.test/o-1.0.0.tgz"},
            "node_modules/bare": {"version": "4.0.0"},
            "node_modules/bundled": {"version": "1.0.0", "inBundle": true},
            "node_modules/local": {"version": "1.0.0", "resolved": "file:local.tgz"},
            "node_modules/git": {"version": "1.0.0", "resolved": "git+ssh://git@host.test/a.git#abc"},
            "node_modules/odd": {"version": "1.0.0", "resolved": "https://host.test/archive.tgz"},
        }});
        let mut found = steps(json!({"package_lock": lock})).unwrap();
        found.sort();
        assert_eq!(
            found,
            [
                "-/host/f.test/o-1.0.0.tgz",
                "@s/in/-/in-2.0.0.tgz",
                "bare …",
                "git@git+ssh://git@host.test/a.git#abc: it does not come from a registry",
                "https://host.test/archive.tgz: it is no registry's tarball of this package: npm gets it elsewhere",
                "plain/-/plain-1.0.0.tgz",
                "real/-/real-3.0.0.tgz",
            ]
        );
    }

    #[test]
    fn the_first_version_of_locks_is_nested() {
        let lock = json!({"lockfileVersion": 1, "dependencies": {
            "a": {"version": "1.0.0", "resolved": "https://r.test/a/-/a-1.0.0.tgz", "dependencies": {
                "b": {"version": "npm:@s/b@2.0.0", "resolved": "https://r.test/@s/b/-/b-2.0.0.tgz"},
                "c": {"version": "1.0.0", "bundled": true},
            }},
        }});
        let order = json!({"package_lock": lock, "packuments": true});
        let found = steps(order).unwrap();
        assert_eq!(found, ["a", "a/-/a-1.0.0.tgz", "@s/b", "@s/b/-/b-2.0.0.tgz"]);
        assert!(steps(json!({"package_lock": {}})).is_err());
        assert_eq!(steps(json!({"package_lock": {"lockfileVersion": 3}})).unwrap(), [""; 0]);
    }

    #[test]
    fn a_packument_leads_to_the_tarball_that_it_names() {
        let packument =
            json!({"versions": {"1.0.0": {"dist": {"tarball": "http://h/x/api/v1/remote/r/-/host/f/a.tgz"}}}});
        let steps = tarball("r", "a", "1.0.0", packument.to_string().as_bytes()).unwrap();
        assert_eq!(steps[0].path, "-/host/f/a.tgz");
        assert!(tarball("r", "a", "2.0.0", packument.to_string().as_bytes()).is_err());
        assert!(tarball("r", "a", "1.0.0", b"<html>").is_err());
    }

    proptest! {
        #[test]
        fn what_a_registry_names_is_found_again(scope in "(@[a-z]{1,5}/)?", name in "[a-z][a-z0-9.-]{0,8}", major in 0_u32..99, prefix in "(npm/|a/b/)?") {
            let package = format!("{scope}{name}");
            let path = format!("{package}/-/{name}-{major}.0.0.tgz");
            let url = format!("https://host.test/{prefix}{path}");
            prop_assert_eq!(below("r", &package, &url), Some(path));
        }

        #[test]
        fn nothing_panics(lock in "[{}\\[\\]\":a-z,/0-9.@]{0,120}", url in "\\PC{0,60}") {
            if let Ok(Value::Object(lock)) = serde_json::from_str(&lock) {
                let _ = packages(Some(&lock));
            }
            let _ = below("r", "a", &url);
        }
    }
}
