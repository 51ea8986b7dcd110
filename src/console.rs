//! `artifactapi quarantine`: what a running instance says of what it holds back, for terminals and scripts.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// An explanation may wait for an index of upstream's.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest answer that is read, in bytes.
const LONGEST: usize = 64 << 20;

/// Asks a running instance what it holds back; ends with 1 if it refuses or cannot be reached.
#[derive(Args)]
pub struct Options {
    /// The running instance
    #[arg(long, value_name = "URL", value_parser = instance, default_value = "http://127.0.0.1:8000", global = true)]
    url: Url,
    /// How to say it
    #[arg(long, value_enum, default_value = "table", global = true)]
    output: Output,
    /// Needed to let something through and to see addresses, where one is set
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ARTIFACTAPI_ADMIN_TOKEN",
        hide_env_values = true,
        global = true
    )]
    admin_token: Option<String>,
    /// Only what this remote holds back
    #[arg(long, value_name = "REMOTE")]
    remote: Option<String>,
    /// At most so many artifacts
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
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

fn instance(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    is_web
        .then_some(url)
        .ok_or_else(|| "write http://HOST:PORT, or https://…".to_owned())
}

/// A question to the instance.
struct Question {
    method: Method,
    path: &'static str,
    query: Vec<(&'static str, String)>,
    body: Option<Value>,
}

impl Options {
    fn question(&self) -> Question {
        let get = |path, query| Question {
            method: Method::GET,
            path,
            query,
            body: None,
        };
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
        match (&self.command, self.output) {
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = match &runtime {
        Ok(runtime) => runtime.block_on(ask(options, options.question())),
        Err(error) => Err(error.to_string()),
    };
    match asked {
        Ok(answer) => {
            print!("{}", options.shown(&answer));
            if answer["truncated"] == true {
                eprintln!("artifactapi: there is more: see --limit and --remote");
            }
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("artifactapi: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// # Errors
/// Why there is no answer, for a person.
async fn ask(options: &Options, question: Question) -> Result<Value, String> {
    // Only the first one counts; all are the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let away = |error: reqwest::Error| {
        let error = error.without_url();
        let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
        format!(
            "{} is not reached ({error}{cause}); name a running instance with --url",
            options.url
        )
    };
    // What goes through a proxy does not come from this machine.
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .timeout(LIMIT)
        .build()
        .map_err(away)?;
    let query = question.query.iter().map(|(name, value)| {
        let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
        format!("{name}={value}")
    });
    let query = query.collect::<Vec<_>>().join("&");
    let base = options.url.as_str().trim_end_matches('/');
    let url = format!("{base}/api/v1/quarantine{}?{query}", question.path);
    let mut request = client.request(question.method, url);
    if let Some(token) = &options.admin_token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = question.body {
        request = request
            .header("content-type", "application/json")
            .body(body.to_string());
    }
    let mut response = request.send().await.map_err(away)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(away)? {
        body.extend_from_slice(&piece);
        if body.len() > LONGEST {
            return Err(format!("{} answers more than {LONGEST} bytes", options.url));
        }
    }
    let answer: Option<Value> = serde_json::from_slice(&body).ok();
    match answer {
        Some(answer) if status.is_success() => Ok(answer),
        Some(answer) if answer["detail"].is_string() => {
            Err(format!("{}: {}", status.as_u16(), cell(&answer["detail"])))
        }
        _ => Err(format!(
            "{} answers {status}, and is no artifactapi that knows this",
            options.url
        )),
    }
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

/// A table of these members of each object of a list, below `title`; `None`: the list is empty.
fn table(title: &str, list: &Value, columns: &[&str]) -> Option<String> {
    let list = list.as_array().filter(|list| !list.is_empty())?;
    let head = columns.iter().map(|column| column.to_uppercase()).collect();
    let mut rows: Vec<Vec<String>> = vec![head];
    rows.extend(
        list.iter()
            .map(|line| columns.iter().map(|column| cell(&line[*column])).collect()),
    );
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = title.to_owned();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    Some(text)
}

/// A value on one line, without anything that a terminal acts on.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    };
    text.chars()
        .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_column_for_each_member() {
        let list = json!([{"path": "a", "due": null}, {"path": "long\u{1b}[1m", "due": "2030"}]);
        let shown = table("", &list, &["path", "due"]).unwrap();
        assert_eq!(shown, "PATH      DUE\na         -\nlong\u{fffd}[1m  2030\n");
        assert_eq!(table("", &json!([]), &["path"]), None);
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

    #[test]
    fn an_instance_is_named_by_a_url() {
        assert!(instance("https://cache.example/prefix/").is_ok());
        for bad in ["cache.example", "ftp://cache.example", "localhost:8000"] {
            assert!(instance(bad).is_err(), "{bad}");
        }
    }
}
