//! What the marker of an upload in parts says, so that whoever finds it after a crash can go on or give it up.
//!
//! A line of JSON that is written before the service is asked to begin, then `upload {id}` when it has, then
//! `part {number} {etag}` for each part that it has, in order. A line that a crash cut is none, and of what two processes
//! wrote, during an upgrade, the first counts.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Which body is being uploaded, as what, in parts of which length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub id: u64,
    pub object: String,
    pub part: u64,
}

/// How far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    pub plan: Plan,
    /// `None`: the service was asked to begin, and it is not known whether it did.
    pub upload: Option<String>,
    /// Entity tags of the parts that it has.
    pub parts: Vec<String>,
}

impl Progress {
    /// The first line of a marker.
    pub(super) fn begin(plan: &Plan) -> io::Result<String> {
        Ok(serde_json::to_string(plan)? + "\n")
    }

    /// Reads a marker; `None`: nothing was begun. Blocks.
    ///
    /// # Errors
    /// The marker cannot be read.
    pub(super) fn read(path: &Path) -> io::Result<Option<Progress>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Progress::parse(&text)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Progress> {
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let plan: Plan = serde_json::from_str(lines.next()?).ok()?;
        let mut progress = Progress {
            plan,
            upload: None,
            parts: Vec::new(),
        };
        for line in lines {
            match line.split_once(' ') {
                Some(("upload", id)) if progress.upload.is_none() => progress.upload = Some(id.to_owned()),
                Some(("upload", _)) => {}
                Some(("part", part)) => {
                    let (number, etag) = part.split_once(' ')?;
                    if number.parse() == Ok(progress.parts.len() + 1) {
                        progress.parts.push(etag.to_owned());
                    }
                }
                _ => break,
            }
        }
        Some(progress)
    }

    /// Adds a line. Blocks.
    ///
    /// # Errors
    /// The marker cannot be written.
    pub(super) fn append(path: &Path, what: &str, value: &str) -> io::Result<()> {
        // Only what is there: a marker that was removed meanwhile does not come back.
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.write_all(format!("{what} {value}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_far_it_came_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marker");
        assert_eq!(Progress::read(&path).unwrap(), None);
        let plan = Plan {
            id: u64::MAX,
            object: "artifactapi/r/a b!0".to_owned(),
            part: 16 << 20,
        };
        std::fs::write(&path, Progress::begin(&plan).unwrap()).unwrap();
        Progress::append(&path, "upload", "id with space").unwrap();
        Progress::append(&path, "part", "1 \"1\"").unwrap();
        Progress::append(&path, "part", "1 \"again\"").unwrap();
        Progress::append(&path, "part", "2 \"2\"").unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        let mut seen = Vec::new();
        for end in 0..=whole.len() {
            let progress = Progress::parse(&whole[..end]);
            let state = progress.map(|progress| {
                assert_eq!(progress.plan, plan);
                (progress.upload.is_some(), progress.parts.len())
            });
            if seen.last() != Some(&state) {
                seen.push(state);
            }
        }
        let expected = [
            None,
            Some((false, 0)),
            Some((true, 0)),
            Some((true, 1)),
            Some((true, 2)),
        ];
        assert_eq!(seen, expected);
        assert!(Progress::parse("nonsense\nupload x\n").is_none());
    }
}
