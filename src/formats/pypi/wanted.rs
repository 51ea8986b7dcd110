//! Python projects by what a list of requirements or a lock file says of them: the index, and the files of the version that an
//! installer would take. Markers are not looked at: a cache serves all environments.

mod listing;
mod lock;
mod requirements;

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};
use pep440_rs::{Version, VersionSpecifiers};

use super::normalized;
use crate::formats::order::{Field, Given, Holds, Step, Term};

const FILES: Field = Field {
    name: "files",
    flag: "file",
    value: "GLOB",
    help: "Of requirements and locks, only files with such a name; repeatable (default: all)",
    holds: Holds::Texts,
};

/// `requirements: "…"` and `lock: "…"`.
pub(super) const TERMS: &[Term] = &[
    Term {
        field: Field {
            name: "requirements",
            flag: "requirements",
            value: "FILE",
            help: "A requirements.txt, dependencies included, as `pip freeze` writes it",
            holds: Holds::File,
        },
        refined_by: &[FILES],
        read: |_, given| {
            let projects = requirements::read(given.text("requirements").unwrap_or_default())?;
            steps(projects, given)
        },
    },
    Term {
        field: Field {
            name: "lock",
            flag: "lock",
            value: "FILE",
            help: "A uv.lock, poetry.lock or pylock.toml",
            holds: Holds::File,
        },
        refined_by: &[FILES],
        read: |_, given| {
            let lock::Locked { projects, strangers } = lock::read(given.text("lock").unwrap_or_default())?;
            let mut steps = steps(projects, given)?;
            let strangers = strangers
                .into_iter()
                .map(|name| Step::refused(name, "the lock takes it from no index: it is a repository or a URL"));
            steps.extend(strangers);
            Ok(steps)
        },
    },
];

/// `Accept` of pip for an index.
const ACCEPT: &str =
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01";

/// A project that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Project {
    /// Normalised.
    name: String,
    versions: VersionSpecifiers,
    /// Whether pre-releases are taken where there are others.
    pre: bool,
    /// The only files that are meant; empty: all.
    files: BTreeSet<String>,
}

/// Which files are taken.
struct Globs(Option<GlobSet>);

impl Globs {
    fn read(given: &Given<'_>) -> Result<Globs, String> {
        let texts = given.texts("files");
        if texts.is_empty() {
            return Ok(Globs(None));
        }
        let mut set = GlobSetBuilder::new();
        for text in texts {
            let glob = Glob::new(text).map_err(|error| format!("`files`: {error}"))?;
            set.add(glob);
        }
        let set = set.build().map_err(|error| format!("`files`: {error}"))?;
        Ok(Globs(Some(set)))
    }

    fn take(&self, file: &str) -> bool {
        self.0.as_ref().is_none_or(|set| set.is_match(file))
    }
}

fn steps(projects: Vec<Project>, given: &Given<'_>) -> Result<Vec<Step>, String> {
    let globs = Arc::new(Globs::read(given)?);
    let step = |project: Project| {
        let globs = Arc::clone(&globs);
        let index = format!("simple/{}/", project.name);
        let base = index.clone();
        Step::document(index, Some(ACCEPT), move |page| chosen(&base, page, &project, &globs))
    };
    Ok(projects.into_iter().map(step).collect())
}

/// The files of the version that an installer would take, with their metadata.
fn chosen(index: &str, page: &[u8], project: &Project, globs: &Globs) -> Result<Vec<Step>, String> {
    let files = listing::read(index, page)?;
    let is_meant = |file: &listing::File| project.files.is_empty() || project.files.contains(&file.name);
    let versions = files
        .iter()
        .filter(|file| is_meant(file))
        .filter_map(|file| Some((version(&file.name)?, file)));
    let versions: Vec<(Version, &listing::File)> = versions.collect();
    let newest = newest(&versions, project);
    let name = &project.name;
    let newest = newest.ok_or_else(|| match project.versions.is_empty() {
        true => format!("the index has no release of {name}"),
        false => format!("the index has no release of {name} that is {}", project.versions),
    })?;
    let of_newest = versions
        .iter()
        .filter(|(version, _)| version == newest)
        .map(|(_, file)| file);
    let taken: Vec<_> = of_newest.filter(|file| globs.take(&file.name)).collect();
    if taken.is_empty() {
        return Err(format!("no file of {name} {newest} has a name that `files` wants"));
    }
    let paths = taken.iter().flat_map(|file| {
        let metadata = file.has_metadata.then(|| Step::file(beside(&file.path)));
        std::iter::once(Step::file(file.path.as_str())).chain(metadata)
    });
    Ok(paths.collect())
}

/// The path of a file's metadata (PEP 658).
fn beside(path: &str) -> String {
    match path.split_once('?') {
        Some((path, query)) => format!("{path}.metadata?{query}"),
        None => format!("{path}.metadata"),
    }
}

/// PEP 440, "Handling of pre-releases", and PEP 592 for what is yanked.
fn newest<'v>(versions: &'v [(Version, &listing::File)], project: &Project) -> Option<&'v Version> {
    let is_pinned = project.versions.iter().any(|specifier| {
        use pep440_rs::Operator::{Equal, ExactEqual};
        matches!(specifier.operator(), Equal | ExactEqual)
    });
    let fits = |(version, file): &&(Version, &listing::File)| {
        project.versions.contains(version) && (is_pinned || !file.is_yanked)
    };
    let fitting = || versions.iter().filter(fits).map(|(version, _)| version);
    let pre = project.pre || project.versions.iter().any(|specifier| specifier.any_prerelease());
    let stable = fitting().filter(|version| pre || !version.any_prerelease()).max();
    stable.or_else(|| fitting().max())
}

/// The version of a distribution file.
fn version(file: &str) -> Option<Version> {
    let text = super::dated::version(file)?;
    Version::from_str(&text.replace('_', "-")).ok()
}

/// Version specifiers; an error names them.
fn specifiers(text: &str) -> Result<VersionSpecifiers, String> {
    VersionSpecifiers::from_str(text).map_err(|error| {
        let error = error.to_string();
        let first = error
            .lines()
            .next()
            .unwrap_or_default()
            .trim_end_matches(':')
            .to_owned();
        format!("{text:?} are no version specifiers: {first}")
    })
}

/// Whether a project has such a name, and its normal spelling.
fn project_name(name: &str) -> Option<String> {
    let is_end = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    let is_name = super::is_name(name) && is_end(name.chars().next()) && is_end(name.chars().next_back());
    is_name.then(|| normalized(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::formats::order;
    use crate::formats::testing::remote;

    fn index(files: &[&str]) -> String {
        let files = files.iter().map(|file| {
            let (name, marks) = file.split_once(' ').unwrap_or((file, ""));
            json!({"filename": name, "url": format!("../../packages/{name}#sha256=00"), "yanked": marks.contains('y'),
                "core-metadata": if marks.contains('m') { json!({"sha256": "00"}) } else { json!(false) }})
        });
        json!({"files": files.collect::<Vec<Value>>()}).to_string()
    }

    fn chosen(requirement: &str, globs: &[&str], files: &[&str]) -> Result<String, String> {
        let remote = remote("pypi", "https://index.test/");
        let order = json!({"requirements": requirement, "files": globs});
        let mut steps = order::read(&remote, TERMS, order.as_object().unwrap())?;
        let step = steps.remove(0);
        assert!(step.path.starts_with("simple/") && step.path.ends_with('/'), "{step:?}");
        let steps = step.then.unwrap()(index(files).as_bytes())?;
        let paths = steps.iter().map(|step| step.path.strip_prefix("packages/").unwrap());
        Ok(paths.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_version_that_an_installer_takes_is_chosen() {
        let files = [
            "a-1.0.tar.gz",
            "a-1.0-py3-none-any.whl m",
            "a-1.5-py3-none-any.whl",
            "a-2.0rc1.tar.gz",
            "a-1.9.tar.gz y",
        ];
        for (requirement, chosen_files) in [
            ("a", "a-1.5-py3-none-any.whl"),
            (
                "a==1.0",
                "a-1.0.tar.gz a-1.0-py3-none-any.whl a-1.0-py3-none-any.whl.metadata",
            ),
            (
                "a<1.5",
                "a-1.0.tar.gz a-1.0-py3-none-any.whl a-1.0-py3-none-any.whl.metadata",
            ),
            (
                "a~=1.0,!=1.5",
                "a-1.0.tar.gz a-1.0-py3-none-any.whl a-1.0-py3-none-any.whl.metadata",
            ),
            ("a==1.*", "a-1.5-py3-none-any.whl"),
            ("a==1.9", "a-1.9.tar.gz"),
            ("a>=2.0rc1", "a-2.0rc1.tar.gz"),
            ("a>1.9", "a-2.0rc1.tar.gz"),
            ("--pre\na", "a-2.0rc1.tar.gz"),
        ] {
            assert_eq!(
                chosen(requirement, &[], &files).as_deref(),
                Ok(chosen_files),
                "{requirement}"
            );
        }
        assert!(
            chosen("a==3", &[], &files)
                .unwrap_err()
                .contains("no release of a that is ==3")
        );
        assert!(chosen("a", &[], &[]).unwrap_err().contains("no release of a"));
        let wheels = chosen("a==1.0", &["*.whl"], &files).unwrap();
        assert_eq!(wheels, "a-1.0-py3-none-any.whl a-1.0-py3-none-any.whl.metadata");
        assert!(
            chosen("a", &["*win*"], &files)
                .unwrap_err()
                .contains("no file of a 1.5")
        );
        assert!(chosen("a", &["["], &files).unwrap_err().contains("`files`"));
    }
}
