//! What the command line asks a running instance, for terminals and scripts: a file for each command.

pub mod artifacts;
mod ask;
pub mod flush;
pub mod quarantine;
mod show;
pub mod version;
pub mod warm;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use url::Url;

/// What was asked for was refused, or failed.
const FAILED: u8 = 1;
/// What was written on the command line makes no sense; the number is that of `clap`.
const USAGE: u8 = 2;

/// Which instance is asked, and how its answer is shown.
#[derive(Args)]
pub struct Common {
    /// The running instance
    #[arg(long, value_name = "URL", value_parser = ask::instance, env = "ARTIFACTAPI_URL",
        default_value = ask::USUAL, global = true)]
    url: Url,
    /// Who is asking, where the instance wants to know [default: the variable ARTIFACTAPI_ADMIN_TOKEN]
    #[arg(
        long,
        alias = "admin-token",
        value_name = "TOKEN",
        env = "ARTIFACTAPI_TOKEN",
        hide_env_values = true,
        global = true
    )]
    token: Option<String>,
    /// How to say it
    #[arg(long, value_enum, default_value = "table", global = true)]
    output: Output,
}

/// How an answer is shown.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Why a command ends without having done what it was asked for.
#[derive(Debug)]
enum Stop {
    /// The instance refused, or something failed.
    Failed(String),
    /// The command line makes no sense.
    Usage(String),
    /// What went wrong was said.
    Said,
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Stop::Failed(reason)
    }
}

/// Runs a command to its end, and says how it went.
fn run(command: impl Future<Output = Result<(), Stop>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match &runtime {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => Err(Stop::Failed(error.to_string())),
    };
    let (code, reason) = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Stop::Said) => return ExitCode::from(FAILED),
        Err(Stop::Failed(reason)) => (FAILED, reason),
        Err(Stop::Usage(reason)) => (USAGE, reason),
    };
    show::complain(&reason);
    ExitCode::from(code)
}
