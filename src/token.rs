//! `artifactapi token`: a new token, and its entry for the settings.

use std::process::ExitCode;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::Args;

use crate::config::{Scope, hashed};

/// What tokens begin with, so that they are known for one where they should not be.
const PREFIX: &str = "aat_";
/// Random bytes: as many as nobody finds by trying.
const LENGTH: usize = 32;

/// Makes a token; ends with 1 if the system has no random numbers.
#[derive(Args)]
pub struct Options {
    /// Whose it is, for people: in `/config` and in errors
    name: String,
    /// What it may be used for, repeatable
    #[arg(long = "scope", value_parser = scope, value_name = "SCOPE", default_value = "read")]
    scopes: Vec<Scope>,
    /// Which remotes it is good for, a name or a pattern such as team-*, repeatable [default: all]
    #[arg(long = "remote", value_name = "REMOTE")]
    remotes: Vec<String>,
    /// When it ends: 2030-01-31, or 2030-01-31T08:00:00Z [default: never]
    #[arg(long, value_name = "DATE")]
    expires: Option<String>,
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::named(text).ok_or_else(|| "write read, write or admin".to_owned())
}

/// Prints a new token and its entry.
pub fn run(options: &Options) -> ExitCode {
    let mut secret = [0; LENGTH];
    let random = rustls::crypto::ring::default_provider().secure_random;
    if random.fill(&mut secret).is_err() {
        eprintln!("artifactapi: the system has no random numbers");
        return ExitCode::FAILURE;
    }
    let token = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(secret));
    println!("# The token. It is shown this once; hand it to whoever is to have it:\n{token}\n");
    println!(
        "# Its entry in conf/artifactapi.yaml; SIGHUP puts it in force:\ntokens:\n{}",
        options.entry(&token)
    );
    ExitCode::SUCCESS
}

impl Options {
    /// One entry of `tokens:`, in YAML.
    fn entry(&self, token: &str) -> String {
        // A string of JSON is one of YAML, whatever it holds.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let scopes: Vec<&str> = self.scopes.iter().map(|scope| scope.name()).collect();
        let mut entry = format!(
            "  - name: {}\n    hash: {}\n    scopes: [{}]\n",
            quoted(&self.name),
            quoted(&hashed(token)),
            scopes.join(", "),
        );
        if !self.remotes.is_empty() {
            let remotes: Vec<String> = self.remotes.iter().map(|remote| quoted(remote)).collect();
            entry.push_str(&format!("    remotes: [{}]\n", remotes.join(", ")));
        }
        if let Some(expires) = &self.expires {
            entry.push_str(&format!("    expires: {}\n", quoted(expires)));
        }
        entry
    }
}
