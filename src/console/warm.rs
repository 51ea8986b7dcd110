//! `artifactapi warm`: artifacts are brought into the cache, and what becomes of each is shown as it ends.

mod orders;
mod progress;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use self::orders::Orders;
use self::progress::Progress;
use super::ask::{Instance, Question};
use super::{Common, Output, Stop};

/// Longest file that is read, in bytes.
const LONGEST_FILE: u64 = 16 << 20;
/// Longest line of an answer, in bytes.
const LONGEST_LINE: usize = 1 << 20;

/// Brings artifacts into the cache; ends with 1 if one of them cannot be had.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// What all is of; without it, paths begin with their remote's name
    #[arg(long, value_name = "REMOTE")]
    remote: Option<String>,
    /// Paths as they stand in URLs, behind their remote's name
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// A file with a path on each line (`-`: standard input; `#` begins a comment)
    #[arg(long, value_name = "FILE")]
    list: Vec<PathBuf>,
    #[command(flatten)]
    orders: Orders,
    /// So many at once (at most 32)
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    parallel: usize,
}

impl Options {
    /// The body of the request, and of how many artifacts it is, if that is known.
    fn body(&self) -> Result<(Value, Option<u64>), Stop> {
        let mut paths = self.paths.clone();
        for file in &self.list {
            let text = text_of(file)?;
            let lines = text.lines().map(str::trim);
            paths.extend(
                lines
                    .filter(|line| !line.is_empty() && !line.starts_with('#'))
                    .map(str::to_owned),
            );
        }
        let by_path = paths.iter().map(|path| self.by_path(path));
        let mut artifacts = by_path.collect::<Result<Vec<Value>, Stop>>()?;
        let known = artifacts.len() as u64;
        let by_term = self.orders.read(self.remote.as_deref())?;
        let count = by_term.is_empty().then_some(known);
        artifacts.extend(by_term);
        if artifacts.is_empty() {
            let reason = "nothing to be cached: name paths, a --list, or what its help shows";
            return Err(Stop::Usage(reason.to_owned()));
        }
        Ok((json!({"artifacts": artifacts, "parallel": self.parallel}), count))
    }

    fn by_path(&self, path: &str) -> Result<Value, Stop> {
        match &self.remote {
            Some(remote) => Ok(json!({"remote": remote, "path": path})),
            None => match path.trim_start_matches('/').split_once('/') {
                Some((remote, path)) if !path.is_empty() => Ok(json!({"remote": remote, "path": path})),
                _ => Err(Stop::Usage(format!(
                    "{path:?} is no REMOTE/PATH; or name the remote with --remote"
                ))),
            },
        }
    }
}

/// The text of a file; `-` is standard input.
fn text_of(file: &Path) -> Result<String, Stop> {
    let failed = |why: &str| Stop::Failed(format!("{} cannot be read: {why}", file.display()));
    let mut text = String::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().lock().take(LONGEST_FILE + 1).read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|file| file.take(LONGEST_FILE + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| failed(&error.to_string()))?;
    if text.len() as u64 > LONGEST_FILE {
        return Err(failed(&format!("it is longer than {LONGEST_FILE} bytes")));
    }
    Ok(text)
}

/// Asks, and shows each line as it comes.
pub fn run(options: &Options) -> ExitCode {
    super::run(async {
        let (body, count) = options.body()?;
        let instance = Instance::new(&options.common)?;
        let question = Question {
            method: Method::POST,
            path: "/api/v1/artifacts".to_owned(),
            query: Vec::new(),
            body: Some(body),
        };
        let mut answer = instance.begin(question).await?;
        let mut progress = Progress::new(options.common.output == Output::Json, count);
        let mut lines = Lines::default();
        let mut done = None;
        while let Some(piece) = answer.chunk().await.map_err(|error| instance.away(error))? {
            for line in lines.take(&piece)? {
                match line["done"] == true {
                    true => done = Some(line),
                    false => progress.show(&line),
                }
            }
        }
        let done = done.ok_or_else(|| Stop::Failed("the answer ended early: not all was told".to_owned()))?;
        progress.end(&done);
        match done["failed"].as_u64() {
            Some(0) => Ok(()),
            _ => Err(Stop::Said),
        }
    })
}

/// Lines of JSON that come in pieces.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn take(&mut self, piece: &[u8]) -> Result<Vec<Value>, String> {
        self.rest.extend_from_slice(piece);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let read = serde_json::from_slice(&line);
            lines.push(read.map_err(|error| format!("the answer has a line that is no JSON: {error}"))?);
        }
        match self.rest.len() > LONGEST_LINE {
            true => Err(format!("the answer has a line of more than {LONGEST_LINE} bytes")),
            false => Ok(lines),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_are_cut(count in 0_usize..20, cut in 1_usize..30) {
            let all: Vec<Value> = (0..count).map(|number| json!({"path": format!("p{number}\n"), "bytes": number})).collect();
            // Spaces before a line keep the connection alive.
            let text: String = all.iter().map(|line| format!("  {line}\n")).collect();
            let mut lines = Lines::default();
            let mut read = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                read.extend(lines.take(piece).unwrap());
            }
            prop_assert_eq!(read, all);
        }
    }

    #[test]
    fn what_is_no_line_of_json_is_an_error() {
        assert!(Lines::default().take(b"<html>\n").is_err());
        assert!(Lines::default().take(&vec![b' '; LONGEST_LINE + 1]).is_err());
    }
}
