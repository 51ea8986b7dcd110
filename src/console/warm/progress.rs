//! What becomes of the artifacts: a line for each, or, on a terminal, a bar and a line for each that failed.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::console::show::{self, bytes, cell};

const TICK: Duration = Duration::from_millis(120);

/// Who looks on.
pub(super) enum Progress {
    /// A program: it gets the lines as they come.
    Json,
    /// A file or a pipe.
    Lines,
    /// A person.
    Bar(ProgressBar, Counts),
}

/// What ended so far.
#[derive(Default)]
pub(super) struct Counts {
    fetched: u64,
    cached: u64,
    failed: u64,
    bytes: u64,
}

impl Counts {
    fn add(&mut self, line: &Value) {
        match word(line) {
            "failed" => self.failed += 1,
            "cached" => self.cached += 1,
            _ => self.fetched += 1,
        }
        self.bytes += line["bytes"].as_u64().unwrap_or(0);
    }

    fn text(&self) -> String {
        let Counts {
            fetched,
            cached,
            failed,
            ..
        } = self;
        let failed = match failed {
            0 => "0 failed".to_owned(),
            failed => show::wrong(&format!("{failed} failed")),
        };
        format!("{fetched} fetched, {cached} cached, {failed}, {}", bytes(self.bytes))
    }
}

impl Progress {
    /// `count`: how many artifacts there will be, if that is known.
    pub(super) fn new(as_json: bool, count: Option<u64>) -> Progress {
        if as_json {
            return Progress::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Progress::Lines;
        }
        let (bar, style) = match count {
            Some(count) => (ProgressBar::new(count), "{bar:30} {pos}/{len}  {msg}"),
            None => (ProgressBar::new_spinner(), "{spinner} {pos}  {msg}"),
        };
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.enable_steady_tick(TICK);
        Progress::Bar(bar, Counts::default())
    }

    /// Shows what became of one.
    pub(super) fn show(&mut self, line: &Value) {
        match self {
            Progress::Json => show::print(&format!("{line}\n")),
            Progress::Lines => show::print(&format!("{}\n", told(line))),
            Progress::Bar(bar, counts) => {
                counts.add(line);
                if !line["error"].is_null() {
                    bar.println(told(line));
                }
                bar.set_message(counts.text());
                bar.inc(1);
            }
        }
    }

    /// Shows what became of all.
    pub(super) fn end(self, done: &Value) {
        let count = |name: &str| done[name].as_u64().unwrap_or(0);
        let counts = Counts {
            fetched: count("fetched"),
            cached: count("cached"),
            failed: count("failed"),
            bytes: count("bytes"),
        };
        match self {
            Progress::Json => show::print(&format!("{done}\n")),
            Progress::Lines => show::print(&format!("{}\n", counts.text())),
            Progress::Bar(bar, _) => {
                bar.finish_and_clear();
                show::print(&format!("{}\n", counts.text()));
            }
        }
    }
}

fn word(line: &Value) -> &'static str {
    match (line["error"].is_null(), line["source"].as_str()) {
        (false, _) => "failed",
        (true, Some("cache")) => "cached",
        (true, _) => "fetched",
    }
}

fn told(line: &Value) -> String {
    let name = format!("{}/{}", cell(&line["remote"]), cell(&line["path"]));
    match word(line) {
        "failed" => {
            let status = match line["status"].as_u64() {
                Some(status) if status != 200 => format!("{status}: "),
                _ => String::new(),
            };
            format!("{}   {name}  {status}{}", show::wrong("failed"), cell(&line["error"]))
        }
        word => format!("{word:7}  {name}  {}", bytes(line["bytes"].as_u64().unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::console::show::plain;

    #[test]
    fn a_line_tells_what_became_of_an_artifact() {
        let line = |status: Value, source: Value, error: Value| {
            let line = json!({"remote": "r", "path": "a/b", "status": status, "source": source, "bytes": 2000, "error": error});
            plain(&told(&line))
        };
        let none = Value::Null;
        assert_eq!(
            line(json!(200), json!("remote"), none.clone()),
            "fetched  r/a/b  2.0 KB"
        );
        assert_eq!(line(json!(200), json!("cache"), none.clone()), "cached   r/a/b  2.0 KB");
        assert_eq!(
            line(json!(404), none.clone(), json!("gone")),
            "failed   r/a/b  404: gone"
        );
        assert_eq!(line(json!(200), json!("remote"), json!("cut")), "failed   r/a/b  cut");
        assert_eq!(line(none.clone(), none, json!("cut")), "failed   r/a/b  cut");
    }
}
