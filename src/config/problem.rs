//! What is wrong with a configuration, told so that a person can put it right: where, for which remote, and how.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Whether a [`Problem`] keeps the configuration from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}

/// One finding. Its `Display` is what `artifactapi check` prints; it never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// `None` for what came from a flag or a variable: `message` names it.
    pub file: Option<PathBuf>,
    /// From 1.
    pub line: Option<usize>,
    /// In characters, from 1.
    pub column: Option<usize>,
    /// The remote it is about, where it is about one.
    pub remote: Option<String>,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// For programs: each member as the field of that name.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "severity": self.severity.to_string(),
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "remote": self.remote,
            "message": self.message,
            "hint": self.hint,
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
                if let Some(column) = self.column {
                    write!(f, "{column}:")?;
                }
            }
            f.write_str(" ")?;
        }
        write!(f, "{}: ", self.severity)?;
        if let Some(remote) = &self.remote {
            write!(f, "remote \"{remote}\": ")?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n    hint: {hint}")?;
        }
        Ok(())
    }
}

/// A place in a file; lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pos {
    pub line: usize,
    pub column: usize,
}

/// What is wrong with one value, before it is known where the value stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub message: String,
    pub hint: Option<String>,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Fault {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says before the message what it is about.
    pub(super) fn about(mut self, subject: impl fmt::Display) -> Self {
        self.message = format!("{subject}: {}", self.message);
        self
    }
}

/// Collects the findings of one load. Shared by reference among everything that reads, hence the cells.
#[derive(Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    interpolated: RefCell<HashMap<(String, String), String>>,
}

impl Report {
    /// A finding that has no place in a file.
    pub(super) fn error(&self, fault: Fault) {
        self.without_place(Severity::Error, None, fault);
    }

    /// The same, of what keeps nothing from working.
    pub(super) fn warning(&self, fault: Fault) {
        self.without_place(Severity::Warning, None, fault);
    }

    /// A file as a whole is wrong.
    pub(super) fn file_error(&self, file: &Path, fault: Fault) {
        self.without_place(Severity::Error, Some(file), fault);
    }

    /// A finding about a file as a whole, which keeps nothing from working.
    pub(super) fn file_warning(&self, file: &Path, fault: Fault) {
        self.without_place(Severity::Warning, Some(file), fault);
    }

    fn without_place(&self, severity: Severity, file: Option<&Path>, fault: Fault) {
        self.push(Problem {
            severity,
            file: file.map(Path::to_owned),
            line: None,
            column: None,
            remote: None,
            message: fault.message,
            hint: fault.hint,
        });
    }

    pub(super) fn push(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Remembers how a value was written that took something from the environment, so that it is shown like that.
    pub(super) fn interpolated(&self, remote: &str, key: &str, source: &str) {
        self.interpolated
            .borrow_mut()
            .insert((remote.to_owned(), key.to_owned()), source.to_owned());
    }

    /// The findings, those of each file in the file's order, files in the order in which they were first complained
    /// about, findings without a file first; and the sources of interpolated values.
    pub(super) fn finish(self) -> (Vec<Problem>, HashMap<(String, String), String>) {
        let mut problems = self.problems.into_inner();
        let mut files: Vec<Option<PathBuf>> = vec![None];
        for problem in &problems {
            if !files.contains(&problem.file) {
                files.push(problem.file.clone());
            }
        }
        problems.sort_by_cached_key(|p| (files.iter().position(|file| *file == p.file), p.line, p.column));
        (problems, self.interpolated.into_inner())
    }

    /// Names the remote in findings about `file` that were made before it was known which remote stands where.
    pub(super) fn attribute(&self, file: &Path, remote_at: impl Fn(Pos) -> Option<String>) {
        for problem in self.problems.borrow_mut().iter_mut() {
            if problem.remote.is_none()
                && problem.file.as_deref() == Some(file)
                && let (Some(line), Some(column)) = (problem.line, problem.column)
            {
                problem.remote = remote_at(Pos { line, column });
            }
        }
    }
}
