//! `artifactapi flush`: what is cached is forgotten, or expired.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::ask::{Instance, Question};
use super::{Common, Output, Stop, show};

/// Removes from the cache what all of these match, or expires it; local remotes are never flushed.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Only what this remote has
    #[arg(long, value_name = "REMOTE")]
    remote: Option<String>,
    /// Only this class
    #[arg(long, value_enum)]
    class: Option<Class>,
    /// Only paths that begin so
    #[arg(long, value_name = "PATH")]
    prefix: Option<String>,
    /// Only paths in which this regular expression matches
    #[arg(long, value_name = "REGEX")]
    pattern: Option<String>,
    /// Free the space, or keep the bodies for revalidation and for when upstream is away
    #[arg(long, value_enum, default_value = "delete")]
    mode: Mode,
    /// Only say what would be flushed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask back where everything would be flushed
    #[arg(long, short)]
    yes: bool,
}

/// What may be flushed apart from the rest.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Class {
    /// Expires after its time
    Mutable,
    /// Never changes
    Immutable,
}

impl Class {
    pub(super) fn name(self) -> &'static str {
        match self {
            Class::Mutable => "mutable",
            Class::Immutable => "immutable",
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Delete,
    Expire,
}

impl Options {
    fn body(&self) -> Value {
        let mode = match self.mode {
            Mode::Delete => "delete",
            Mode::Expire => "expire",
        };
        let mut body = json!({
            "remote": self.remote,
            "class": self.class.map(Class::name),
            "prefix": self.prefix,
            "pattern": self.pattern,
            "mode": mode,
            "dry_run": self.dry_run,
        });
        if let Some(fields) = body.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        body
    }

    fn is_everything(&self) -> bool {
        self.remote.is_none() && self.class.is_none() && self.prefix.is_none() && self.pattern.is_none()
    }

    fn shown(&self, answer: &Value) -> String {
        let count = |name: &str| answer[name].as_u64().unwrap_or(0);
        let bytes = show::bytes(count("bytes"));
        let (matched, deleted, expired) = (count("matched"), count("deleted"), count("expired"));
        let unfinished = match answer["unfinished"] == true {
            true => "; the rest goes on, and is not served any more",
            false => "",
        };
        match self.dry_run {
            true => format!("{matched} would be flushed, {bytes}\n"),
            false => format!("{matched} matched: {deleted} deleted, {expired} expired, {bytes}{unfinished}\n"),
        }
    }
}

/// Flushes, and says what was.
pub fn run(options: &Options) -> ExitCode {
    super::run(async {
        if options.is_everything() && !options.dry_run && !options.yes {
            confirm(options)?;
        }
        let instance = Instance::new(&options.common)?;
        let question = Question {
            method: Method::PUT,
            path: "/cache/flush".to_owned(),
            query: Vec::new(),
            body: Some(options.body()),
        };
        let answer = instance.ask(question).await?;
        show::print(&match options.common.output {
            Output::Json => format!("{answer:#}\n"),
            Output::Table => options.shown(&answer),
        });
        Ok(())
    })
}

/// # Errors
/// Nobody says yes.
fn confirm(options: &Options) -> Result<(), Stop> {
    if !std::io::stdin().is_terminal() {
        let reason = "this would flush everything: name a part of it, or say --yes";
        return Err(Stop::Usage(reason.to_owned()));
    }
    let mut out = anstream::stderr().lock();
    let _ = write!(out, "Flush everything that {} has cached? [y/N] ", options.common.url);
    let _ = out.flush();
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    let is_yes = read.is_ok() && matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    is_yes
        .then_some(())
        .ok_or_else(|| Stop::Failed("nothing was flushed".to_owned()))
}
