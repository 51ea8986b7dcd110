//! Lock files: `uv.lock`, `poetry.lock`, and `pylock.toml` (PEP 751). All of them are TOML with a list of packages, each with its
//! version and the names of its files.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::super::super::links::decode_once;
use super::{Project, project_name, specifiers};

/// What a lock names.
#[derive(Debug)]
pub(super) struct Locked {
    pub projects: Vec<Project>,
    /// What comes from repositories and URLs.
    pub strangers: Vec<String>,
}

/// # Errors
/// The text is no such lock, or a package in it is none.
pub(super) fn read(text: &str) -> Result<Locked, String> {
    let lock: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        format!("`lock`, line {line}: it is no TOML: {}", error.message())
    })?;
    let packages = ["packages", "package"]
        .iter()
        .find_map(|name| lock.get(*name)?.as_array());
    let is_lock = ["lock-version", "version", "metadata"]
        .iter()
        .any(|name| lock.contains_key(*name));
    let packages: &[Value] = match packages {
        Some(packages) => packages,
        None if is_lock => &[],
        None => return Err("`lock` is neither a uv.lock nor a poetry.lock nor a pylock.toml".to_owned()),
    };
    let mut locked = Locked {
        projects: Vec::new(),
        strangers: Vec::new(),
    };
    for package in packages {
        let name = package.get("name").and_then(Value::as_str).unwrap_or_default();
        let normal = project_name(name).ok_or_else(|| format!("`lock` has a package of the name {name:?}"))?;
        match origin(package) {
            Origin::Here => {}
            Origin::Elsewhere => locked.strangers.push(name.to_owned()),
            Origin::Index => {
                // PEP 751 lets a version out where the files tell it.
                let version = package.get("version").and_then(Value::as_str);
                let versions = version.map_or(String::new(), |version| format!("=={version}"));
                locked.projects.push(Project {
                    name: normal,
                    versions: specifiers(&versions).map_err(|error| format!("`lock`, {name}: {error}"))?,
                    pre: true,
                    files: files(package),
                });
            }
        }
    }
    Ok(locked)
}

/// Where a package comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Index,
    /// The project itself, or a folder or file beside it.
    Here,
    /// A repository or a URL.
    Elsewhere,
}

fn origin(package: &Value) -> Origin {
    // PEP 751.
    if package.get("directory").is_some() {
        return Origin::Here;
    }
    if package.get("vcs").is_some() || package.get("archive").is_some() {
        return Origin::Elsewhere;
    }
    let Some(source) = package.get("source") else {
        return Origin::Index;
    };
    // Poetry has the type as a word, uv as the name of a field.
    let kind = source.get("type").and_then(Value::as_str);
    let is = |name: &str| kind == Some(name) || (kind.is_none() && source.get(name).is_some());
    if ["virtual", "editable", "directory", "path", "file"]
        .iter()
        .any(|name| is(name))
    {
        return Origin::Here;
    }
    if ["git", "url", "hg", "svn", "bzr"].iter().any(|name| is(name)) {
        // Poetry's `legacy` names an index by its URL.
        return Origin::Elsewhere;
    }
    Origin::Index
}

/// The names of a package's files.
fn files(package: &Value) -> BTreeSet<String> {
    let list = |name: &str| {
        package
            .get(name)
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice)
    };
    let each = list("files").iter().chain(list("wheels")).chain(package.get("sdist"));
    each.filter_map(name).collect()
}

fn name(file: &Value) -> Option<String> {
    let text = |field: &str| file.get(field).and_then(Value::as_str);
    if let Some(name) = text("file").or_else(|| text("name")).or_else(|| text("filename")) {
        return Some(name.to_owned());
    }
    let place = text("url").or_else(|| text("path"))?.split(['?', '#']).next()?;
    let name = decode_once(place.rsplit('/').next()?);
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Result<(Vec<String>, Vec<String>), String> {
        let locked = read(text)?;
        let projects = locked.projects.iter().map(|project| {
            let files: Vec<&str> = project.files.iter().map(String::as_str).collect();
            format!("{}{} {}", project.name, project.versions, files.join(" "))
                .trim_end()
                .to_owned()
        });
        Ok((projects.collect(), locked.strangers))
    }

    #[test]
    fn a_lock_of_uv() {
        let text = r#"version = 1
revision = 2
requires-python = ">=3.9"

[[package]]
name = "project"
version = "0.1.0"
source = { virtual = "." }
dependencies = [{ name = "six" }]

[[package]]
name = "Six"
version = "1.17.0"
source = { registry = "https://index.test/simple" }
sdist = { url = "https://f.test/packages/six-1.17.0.tar.gz", hash = "sha256:00", size = 1 }
wheels = [{ url = "https://f.test/packages/six-1.17.0-py2.py3-none-any.whl", hash = "sha256:11" }]

[[package]]
name = "forked"
version = "1.0"
source = { git = "https://host.test/forked?rev=1" }
"#;
        let (projects, strangers) = shown(text).unwrap();
        assert_eq!(
            projects,
            ["six==1.17.0 six-1.17.0-py2.py3-none-any.whl six-1.17.0.tar.gz"]
        );
        assert_eq!(strangers, ["forked"]);
    }

    #[test]
    fn a_lock_of_poetry() {
        let text = r#"[[package]]
name = "six"
version = "1.17.0"
optional = false
files = [
    {file = "six-1.17.0-py2.py3-none-any.whl", hash = "sha256:00"},
    {file = "six-1.17.0.tar.gz", hash = "sha256:11"},
]

[[package]]
name = "inner"
version = "2.0"
files = []

[package.source]
type = "legacy"
url = "https://index.test/simple"
reference = "inner"

[[package]]
name = "beside"
version = "1.0"

[package.source]
type = "directory"
url = "../beside"

[[package]]
name = "archive"
version = "1.0"

[package.source]
type = "url"
url = "https://host.test/a.zip"

[metadata]
lock-version = "2.1"
content-hash = "00"
"#;
        let (projects, strangers) = shown(text).unwrap();
        let six = "six==1.17.0 six-1.17.0-py2.py3-none-any.whl six-1.17.0.tar.gz";
        assert_eq!(projects, [six, "inner==2.0"]);
        assert_eq!(strangers, ["archive"]);
    }

    #[test]
    fn a_lock_as_pep_751_has_it() {
        let text = r#"lock-version = "1.0"
created-by = "a tool"
[[packages]]
name = "six"
version = "1.17.0"
index = "https://index.test/simple"
wheels = [{name = "six-1.17.0-py2.py3-none-any.whl", url = "https://f.test/x", hashes = {sha256 = "00"}}]
sdist = {path = "dist/six%2B1.tar.gz", hashes = {}}
[[packages]]
name = "own"
directory = {path = "."}
[[packages]]
name = "vcs"
vcs = {type = "git", url = "https://host.test/a"}
"#;
        let (projects, strangers) = shown(text).unwrap();
        assert_eq!(projects, ["six==1.17.0 six+1.tar.gz six-1.17.0-py2.py3-none-any.whl"]);
        assert_eq!(strangers, ["vcs"]);
    }

    #[test]
    fn what_is_no_lock_is_an_error() {
        for (text, says) in [
            ("a = 1\nb = \n", "line 2"),
            ("a = 1", "neither a uv.lock"),
            ("version = 1\n[[package]]\nversion = \"1\"\n", "name \"\""),
            (
                "version = 1\n[[package]]\nname = \"a\"\nversion = \"x y\"\n",
                "`lock`, a:",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!(shown("version = 1\n").unwrap().0, [""; 0]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(projects in prop::collection::btree_map("[a-z][a-z0-9]{0,8}", (0_u64..9, 0_u64..9), 0..20)) {
            let mut text = "version = 1\n".to_owned();
            let mut expected = Vec::new();
            for (name, (major, minor)) in projects {
                let file = format!("{name}-{major}.{minor}.tar.gz");
                text.push_str(&format!(
                    "[[package]]\nname = \"{name}\"\nversion = \"{major}.{minor}\"\nsource = {{ registry = \"https://i.test\" }}\n\
                     sdist = {{ url = \"https://f.test/{file}\" }}\n"
                ));
                expected.push(format!("{name}=={major}.{minor} {file}"));
            }
            prop_assert_eq!(shown(&text).unwrap().0, expected);
        }

        #[test]
        fn nothing_panics(text in "[a-z0-9 =\"{}\\[\\]\n.,\u{e9}-]{0,160}") {
            let _ = read(&text);
        }
    }
}
