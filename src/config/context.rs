//! Where a value is being read, and how that is told with what is wrong.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::problem::{Fault, Pos, Problem, Report, Severity};

/// Where a value is being read, and with what: handed down to everything that reads a file.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub file: &'a Path,
    pub env: &'a Environment,
    pub remote: Option<&'a str>,
    pub report: &'a Report,
}

impl Context<'_> {
    pub(super) fn error(&self, at: Pos, fault: Fault) {
        self.push(Severity::Error, at, fault);
    }

    pub(super) fn warn(&self, at: Pos, fault: Fault) {
        self.push(Severity::Warning, at, fault);
    }

    fn push(&self, severity: Severity, at: Pos, fault: Fault) {
        self.report.push(Problem {
            severity,
            file: Some(self.file.to_owned()),
            line: Some(at.line),
            column: Some(at.column),
            remote: self.remote.map(str::to_owned),
            message: fault.message,
            hint: fault.hint,
        });
    }

    /// A path that a file names is meant relative to that file, wherever the process was started.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        match self.file.parent() {
            Some(folder) => folder.join(path),
            None => PathBuf::from(path),
        }
    }
}
