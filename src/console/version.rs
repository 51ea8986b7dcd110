//! `artifactapi version`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Output, show};

/// Says which version this is.
#[derive(Args)]
pub struct Options {
    /// How to say it
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// Says it.
pub fn run(options: &Options) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    show::print(&match options.output {
        Output::Table => format!("artifactapi {version}\n"),
        Output::Json => format!("{:#}\n", json!({"name": "artifactapi", "version": version})),
    });
    ExitCode::SUCCESS
}
