//! `artifactapi artifacts`: what is stored.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::ask::{Instance, Question};
use super::flush::Class;
use super::{Common, Output, show};

/// Objects on one page: the most that an instance gives.
const PAGE: usize = 1000;

/// Lists what is stored, narrowed by whatever is given.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Of this remote
    #[arg(long, value_name = "REMOTE")]
    remote: Option<String>,
    /// Whose path begins so
    #[arg(long, value_name = "PATH")]
    prefix: Option<String>,
    /// Whose path is like this; without a slash, whose file name is
    #[arg(long, value_name = "GLOB")]
    glob: Option<String>,
    /// In whose path this regular expression matches
    #[arg(long, value_name = "REGEX")]
    pattern: Option<String>,
    /// Of this class
    #[arg(long, value_enum)]
    class: Option<Class>,
    /// Of at least so many bytes (KB, MB, GB)
    #[arg(long, value_name = "SIZE")]
    min_size: Option<String>,
    /// That nobody asked for since (seconds, or 5m, 3h, 7d)
    #[arg(long, value_name = "AGE")]
    older_than: Option<String>,
    /// By path, size, last_seen, hits or first_seen; with a `-` before it, the largest first
    #[arg(long, value_name = "FIELD", allow_hyphen_values = true)]
    sort: Option<String>,
    /// At most so many; 0: all
    #[arg(long, value_name = "COUNT", default_value_t = PAGE)]
    limit: usize,
}

impl Options {
    fn query(&self) -> Vec<(&'static str, String)> {
        let given = [
            ("remote", self.remote.clone()),
            ("prefix", self.prefix.clone()),
            ("glob", self.glob.clone()),
            ("pattern", self.pattern.clone()),
            ("class", self.class.map(|class| class.name().to_owned())),
            ("min_size", self.min_size.clone()),
            ("older_than", self.older_than.clone()),
            ("sort", self.sort.clone()),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
        given.collect()
    }

    fn is_enough(&self, count: usize) -> bool {
        self.limit > 0 && count >= self.limit
    }
}

/// Asks for one page after the other, and shows them as one list.
pub fn run(options: &Options) -> ExitCode {
    super::run(async {
        let instance = Instance::new(&options.common)?;
        let mut artifacts: Vec<Value> = Vec::new();
        let (mut totals, mut cursor) = (None, None);
        loop {
            let left = match options.limit {
                0 => PAGE,
                limit => limit - artifacts.len(),
            };
            let mut query = options.query();
            query.push(("limit", left.min(PAGE).to_string()));
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            let mut page = instance.ask(Question::get("/api/v1/artifacts", query)).await?;
            if let Some(listed) = page["artifacts"].as_array_mut() {
                artifacts.append(listed);
            }
            totals.get_or_insert((page["total"].clone(), page["bytes"].clone()));
            cursor = page["next"].as_str().map(str::to_owned);
            if cursor.is_none() || options.is_enough(artifacts.len()) {
                break;
            }
        }
        let (total, bytes) = totals.unwrap_or_default();
        match options.common.output {
            Output::Json => {
                let all = json!({"artifacts": artifacts, "total": total, "bytes": bytes});
                show::print(&format!("{all:#}\n"));
            }
            Output::Table => {
                show::print(&table(&artifacts));
                let shown = artifacts.len();
                let bytes = show::bytes(bytes.as_u64().unwrap_or(0));
                let count = show::cell(&total);
                if cursor.is_some() {
                    show::remark(&format!("{shown} of {count} artifacts, {bytes} in all: see --limit"));
                } else {
                    show::remark(&format!("{count} artifacts, {bytes}"));
                }
            }
        }
        Ok(())
    })
}

fn table(artifacts: &[Value]) -> String {
    const COLUMNS: [&str; 7] = ["remote", "path", "class", "size", "hits", "last seen", "fresh until"];
    let row = |artifact: &Value| {
        let fresh = match artifact["fresh_until"].is_null() {
            true => "for ever".to_owned(),
            false => show::cell(&artifact["fresh_until"]),
        };
        vec![
            show::cell(&artifact["remote"]),
            show::cell(&artifact["path"]),
            show::cell(&artifact["class"]),
            show::bytes(artifact["size"].as_u64().unwrap_or(0)),
            show::cell(&artifact["hits"]),
            show::cell(&artifact["last_seen"]),
            fresh,
        ]
    };
    match artifacts.is_empty() {
        true => String::new(),
        false => show::lines(&COLUMNS, artifacts.iter().map(row).collect()),
    }
}
