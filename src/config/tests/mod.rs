//! The loader as a whole: what must load, and what is said about what must not.

use std::fs;
use std::sync::Arc;

use super::*;
use crate::formats;

const SHIPPED: &str = include_str!("../../../remotes.yaml");
const SHIPPED_CONF: &str = include_str!("../../../conf/artifactapi.yaml");

mod examples;
mod fuzz;
mod remotes;
mod settings;
mod yaml;

struct Case {
    folder: tempfile::TempDir,
    flags: Flags,
    variables: Vec<(String, String)>,
}

impl Case {
    fn new(remotes: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let flags = Flags {
            remotes: Some(folder.path().join("remotes.yaml")),
            conf: Some(folder.path().join("conf.yaml")),
            ..Flags::default()
        };
        let case = Case {
            folder,
            flags,
            variables: Vec::new(),
        };
        case.write("remotes.yaml", remotes);
        case.conf("")
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), text).expect("a file is written");
    }

    fn conf(self, text: &str) -> Self {
        self.write("conf.yaml", text);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn load(&self) -> Loaded {
        load(
            &formats::packages(),
            &self.flags,
            &self.variables.iter().cloned().collect(),
            1,
        )
    }

    /// Problems as they are printed, without the folder.
    fn problems(&self) -> Vec<String> {
        let loaded = self.load();
        assert_eq!(
            loaded.config.is_none(),
            loaded.problems.iter().any(|p| p.severity == Severity::Error)
        );
        let folder = format!("{}/", self.folder.path().display());
        loaded
            .problems
            .iter()
            .map(|p| p.to_string().replace(&folder, ""))
            .collect()
    }

    fn config(&self) -> Config {
        let loaded = self.load();
        assert!(loaded.config.is_some(), "{:#?}", loaded.problems);
        loaded.config.expect("just looked")
    }

    fn remote(&self, name: &str) -> Arc<Remote> {
        Arc::clone(&self.config().remotes[name])
    }
}

/// A file with one remote `x` of these keys, which begin in line 3, column 5.
fn one(keys: &str) -> Case {
    let keys: Vec<String> = keys.lines().map(|line| format!("    {line}\n")).collect();
    Case::new(&format!("remotes:\n  x:\n{}", keys.concat()))
}

fn generic(keys: &str) -> Case {
    one(&format!("base_url: https://example.com\n{keys}"))
}

#[track_caller]
fn finds(case: &Case, expected: &[&str]) {
    let problems = case.problems();
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "expected {expected:?} in {problem:?}");
    }
}
