//! `artifactapi quarantine`: what a running instance says of what it holds back, for terminals and scripts.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::ask::{Instance, Question};
use super::show::{self, cell, table};
use super::{Common, Output};

/// Asks a running instance what it holds back; ends with 1 if it refuses or cannot be reached.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Only what this remote holds back
    #[arg(long, value_name = "REMOTE")]
    remote: Option<String>,
    /// At most so many artifacts
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Why an artifact is, or is not, served
    Explain { remote: String, path: String },
    /// Let an artifact through though it is held
    Release {
        remote: String,
        path: String,
        /// Kept for those who look later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Hold an artifact again that was let through
    Unrelease { remote: String, path: String },
    /// What is let through
    Released,
}

impl Options {
    fn question(&self) -> Question {
        let get = |path, query| Question::get(format!("/api/v1/quarantine{path}"), query);
        let named = |remote: &String, path: &String| vec![("remote", remote.clone()), ("path", path.clone())];
        match &self.command {
            None => {
                let remote = self.remote.clone().map(|remote| ("remote", remote));
                let limit = self.limit.map(|limit| ("limit", limit.to_string()));
                get("", remote.into_iter().chain(limit).collect())
            }
            Some(Command::Explain { remote, path }) => get("/explain", named(remote, path)),
            Some(Command::Released) => get("/released", Vec::new()),
            Some(Command::Release { remote, path, reason }) => Question {
                method: Method::POST,
                body: Some(json!({"remote": remote, "path": path, "reason": reason})),
                ..get("/release", Vec::new())
            },
            Some(Command::Unrelease { remote, path }) => Question {
                method: Method::DELETE,
                ..get("/release", named(remote, path))
            },
        }
    }

    fn shown(&self, answer: &Value) -> String {
        match (&self.command, self.common.output) {
            (_, Output::Json) => format!("{answer:#}\n"),
            (None, _) => report(answer),
            (Some(Command::Explain { .. }), _) => explained(answer),
            (Some(Command::Released), _) => {
                let columns = ["remote", "path", "at", "by", "reason"];
                table("", &answer["released"], &columns).unwrap_or_else(|| "nothing is let through\n".to_owned())
            }
            (Some(Command::Release { .. }), _) => {
                format!("let through: {} {}\n", cell(&answer["remote"]), cell(&answer["path"]))
            }
            (Some(Command::Unrelease { .. }), _) => {
                let removed = answer["removed"].as_array().into_iter().flatten();
                let lines =
                    removed.map(|entry| format!("held again: {} {}\n", cell(&entry["remote"]), cell(&entry["path"])));
                lines.collect()
            }
        }
    }
}

/// Asks, prints the answer, and says how it went.
pub fn run(options: &Options) -> ExitCode {
    super::run(async {
        let answer = Instance::new(&options.common)?.ask(options.question()).await?;
        show::print(&options.shown(&answer));
        if answer["truncated"] == true {
            show::remark("there is more: see --limit and --remote");
        }
        Ok(())
    })
}

fn report(answer: &Value) -> String {
    let dated = [
        "remote",
        "path",
        "published",
        "due",
        "mode",
        "asked",
        "stored",
        "reason",
    ];
    let undated = ["remote", "path", "mode", "asked", "stored", "reason"];
    let tables = [
        table("", &answer["artifacts"], &dated),
        table("without a date:\n", &answer["undated"], &undated),
    ];
    let shown: Vec<String> = tables.into_iter().flatten().collect();
    match shown.is_empty() {
        true => "nothing is held back\n".to_owned(),
        false => shown.join("\n"),
    }
}

fn explained(answer: &Value) -> String {
    const FIRST: [&str; 5] = ["verdict", "reason", "rule", "until", "published"];
    let fields: Vec<(&str, &Value)> = answer
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    let first = FIRST
        .iter()
        .filter_map(|name| fields.iter().find(|(field, _)| field == name));
    let rest = fields.iter().filter(|(name, _)| !FIRST.contains(name));
    let mut text = String::new();
    for (name, value) in first.chain(rest).filter(|(_, value)| !value.is_null()) {
        let value = match value.as_object() {
            Some(members) => {
                let members = members.iter().map(|(name, value)| format!("{name} {}", cell(value)));
                members.collect::<Vec<_>>().join(", ")
            }
            None => cell(value),
        };
        text.push_str(&format!("{name:13} {value}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_held_is_said_so() {
        assert_eq!(
            report(&json!({"artifacts": [], "undated": []})),
            "nothing is held back\n"
        );
    }

    #[test]
    fn an_explanation_begins_with_the_verdict() {
        let answer = json!({"class": "immutable", "verdict": "held", "reason": "young", "until": null});
        assert_eq!(
            explained(&answer),
            "verdict       held\nreason        young\nclass         immutable\n"
        );
    }
}
