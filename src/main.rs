//! The command line.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use artifactapi::backends;
use artifactapi::bucket::reindex;
use artifactapi::cache;
use artifactapi::config::{self, DefaultRemote, Environment, Flags, Loaded, Secret, Severity};
use artifactapi::console::{Output, artifacts, flush, quarantine, version, warm};
use artifactapi::formats;
use artifactapi::life;
use artifactapi::secrets::hidden;
use artifactapi::token;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::json;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str =
    "Exit codes: 0, it was done; 1, it was refused or failed, or a part of it; 2, the command line makes no sense.";

/// A caching reverse proxy for package registries and artifact hosts.
#[derive(Parser)]
#[command(version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve.
    Serve(ServeOptions),
    /// Validate the configuration and print every problem.
    Check(CheckOptions),
    /// Compare all that is stored with its digests and remove what is damaged; the service may run meanwhile.
    Verify(Options),
    /// Fill the catalogue from what the S3 bucket holds; the service may run meanwhile.
    Reindex(Options),
    /// Make a token, and print it with its entry for the settings: this once, it is kept nowhere.
    Token(token::Options),
    /// Ask a running instance what it holds back, and let something through.
    Quarantine(quarantine::Options),
    /// Bring artifacts into the cache of a running instance.
    Warm(warm::Options),
    /// List what a running instance has stored.
    Artifacts(artifacts::Options),
    /// Remove what a running instance has cached, or expire it.
    Flush(flush::Options),
    /// Say which version this is.
    Version(version::Options),
    /// Print what a shell needs to complete these commands: see the README.
    Completions { shell: Shell },
}

/// How `check` reports.
#[derive(Args)]
struct CheckOptions {
    #[command(flatten)]
    options: Options,
    /// How to say it
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Args)]
struct ServeOptions {
    #[command(flatten)]
    options: Options,
    /// Take the listening sockets over from the process that serves the data folder now; it stops when this one serves
    #[arg(long)]
    upgrade: bool,
}

/// Each flag wins over the variable that it names, which wins over the configuration file.
#[derive(Args)]
struct Options {
    /// Address to listen on, repeatable [variable: ARTIFACTAPI_LISTEN; default: 127.0.0.1:8000]
    #[arg(long, value_name = "IP:PORT")]
    listen: Vec<String>,
    /// The remotes [variable: ARTIFACTAPI_REMOTES; default: remotes.yaml]
    #[arg(long, value_name = "FILE")]
    remotes: Option<PathBuf>,
    /// Where to store [variable: ARTIFACTAPI_DATA_DIR; default: ./data]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Settings [variable: ARTIFACTAPI_CONF; default: conf/artifactapi.yaml, if there is one]
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,
    /// What rewritten links begin with [variable: ARTIFACTAPI_PUBLIC_URL; default: as the client asked]
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    #[command(flatten)]
    default_remotes: DefaultRemotes,
    /// A token that may do everything [variable: ARTIFACTAPI_ADMIN_TOKEN, which other users cannot see]
    #[arg(long, value_name = "TOKEN")]
    admin_token: Option<String>,
    /// Where other nodes reach this one [variable: ARTIFACTAPI_NODE_URL]
    #[arg(long, value_name = "URL")]
    node_url: Option<String>,
    /// What nodes sign their questions with [variable: ARTIFACTAPI_NODE_SECRET, which other users cannot see]
    #[arg(long, value_name = "SECRET")]
    node_secret: Option<String>,
}

/// By package type, the remote that is asked where clients name none: a flag for each type that has such a setting.
struct DefaultRemotes(HashMap<&'static str, String>);

impl DefaultRemotes {
    fn settings() -> impl Iterator<Item = (&'static str, DefaultRemote)> {
        let packages = formats::packages().into_iter();
        packages.filter_map(|package| Some((package.name, package.default_remote?)))
    }
}

impl Args for DefaultRemotes {
    fn augment_args(command: clap::Command) -> clap::Command {
        DefaultRemotes::settings().fold(command, |command, (_, setting)| {
            let DefaultRemote { flag, variable, help } = setting;
            let help = format!("{help} [variable: {variable}; default: nowhere]");
            let arg = Arg::new(flag).long(flag.trim_start_matches('-'));
            command.arg(arg.value_name("REMOTE").help(help))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DefaultRemotes {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = DefaultRemotes::settings().filter_map(|(package, setting)| {
            let name = matches.get_one::<String>(setting.flag)?;
            Some((package, name.clone()))
        });
        Ok(DefaultRemotes(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl From<Options> for Flags {
    fn from(options: Options) -> Self {
        Flags {
            listen: options.listen,
            remotes: options.remotes,
            data_dir: options.data_dir,
            conf: options.conf,
            public_url: options.public_url,
            default_remotes: options.default_remotes.0,
            admin_token: options.admin_token.map(Secret::new),
            node_url: options.node_url,
            node_secret: options.node_secret.map(Secret::new),
        }
    }
}

fn main() -> ExitCode {
    // First of all: without a handler SIGHUP kills, and a reload may be asked for at any time.
    let hangups = life::catch_hangups();
    life::raise_descriptor_limit();
    let cli = Cli::parse();
    let environment = Environment::from_process();
    match cli.command {
        Command::Quarantine(options) => quarantine::run(&options),
        Command::Token(options) => token::run(&options),
        Command::Warm(options) => warm::run(&options),
        Command::Artifacts(options) => artifacts::run(&options),
        Command::Flush(options) => flush::run(&options),
        Command::Version(options) => version::run(&options),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "artifactapi", &mut script);
            // Whoever has closed standard output wants no more.
            let _ = std::io::stdout().write_all(&script);
            ExitCode::SUCCESS
        }
        Command::Check(CheckOptions { options, output }) => check(&options.into(), &environment, output),
        Command::Verify(options) => verify(&options.into(), &environment),
        Command::Reindex(options) => {
            log();
            reindex(&options.into(), &environment)
        }
        Command::Serve(ServeOptions { options, upgrade }) => {
            log();
            let flags = options.into();
            let Some(config) = load(&flags, &environment) else {
                return ExitCode::FAILURE;
            };
            let hangups = match hangups {
                Ok(hangups) => hangups,
                Err(error) => return fail(&format!("SIGHUP cannot be caught: {error}")),
            };
            match life::serve(config, flags, environment, hangups, upgrade) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error.to_string()),
            }
        }
    }
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("artifactapi: {reason}");
    ExitCode::FAILURE
}

fn load(flags: &Flags, environment: &Environment) -> Option<config::Config> {
    let Loaded { config, problems } = config::load(&formats::packages(), flags, environment, 1);
    for problem in &problems {
        match problem.severity {
            Severity::Error => eprintln!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
        }
    }
    config
}

fn check(flags: &Flags, environment: &Environment, output: Output) -> ExitCode {
    let Loaded { config, problems } = config::load(&formats::packages(), flags, environment, 1);
    let is_error = |problem: &&config::Problem| problem.severity == Severity::Error;
    let errors = problems.iter().filter(is_error).count();
    let warnings = problems.len() - errors;
    let remotes = config.as_ref().map_or(0, |config| config.remotes.len());
    let is_ok = config.is_some();
    match output {
        Output::Table => {
            problems.iter().for_each(|problem| println!("{problem}"));
            match is_ok {
                true => println!("ok: {remotes} remotes, {warnings} warnings"),
                false => println!("failed: {errors} errors, {warnings} warnings"),
            }
        }
        Output::Json => {
            let problems: Vec<_> = problems.iter().map(config::Problem::to_json).collect();
            let report = json!({"ok": is_ok, "remotes": remotes, "errors": errors, "warnings": warnings,
                "problems": problems});
            println!("{report:#}");
        }
    }
    match is_ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn verify(flags: &Flags, environment: &Environment) -> ExitCode {
    let Loaded { config, problems } = config::load(&formats::packages(), flags, environment, 1);
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    errors.for_each(|problem| eprintln!("{problem}"));
    let Some(config) = config else {
        return ExitCode::FAILURE;
    };
    let folder = &config.settings.data_dir;
    let found = match cache::verify(folder, |line| println!("{line}")) {
        Ok(found) => found,
        Err(error) => return fail(&format!("{} cannot be verified: {error}", folder.display())),
    };
    println!(
        "{} objects, {} bytes: {} damaged, {} that cannot be read now",
        found.objects, found.bytes, found.damaged, found.unread
    );
    if let Some(error) = &found.unlisted {
        return fail(&format!("not all was looked at: {error}"));
    }
    match found.damaged + found.unread {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn reindex(flags: &Flags, environment: &Environment) -> ExitCode {
    let Loaded { config, problems } = config::load(&formats::packages(), flags, environment, 1);
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    errors.for_each(|problem| eprintln!("{problem}"));
    let Some(config) = config else {
        return ExitCode::FAILURE;
    };
    let Some(s3) = &config.settings.s3 else {
        return fail("no bucket is configured: set MINIO_ENDPOINT and its group");
    };
    let runtime = match backends::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    let done = reindex::from_bucket(s3, || {
        let opened = backends::open_catalog(&config.settings, runtime.handle());
        opened.map(|(catalog, _)| catalog).map_err(|error| error.to_string())
    });
    runtime.shutdown_background();
    match done {
        Ok(summary) => {
            println!("{summary}");
            if summary.failed == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(reason) => fail(&reason),
    }
}

/// What libraries say that is of use to whoever runs this. They may write down whole requests and URLs, secrets included,
/// so they say no more than this unless they are named.
const LIBRARIES: &str = "info,pingora_core=warn,pingora_core::apps=off,pingora_core::connectors=off,\
                         pingora_proxy=warn,pingora_cache=warn,hickory_resolver=error,hickory_net=error";

fn log() {
    let wanted = std::env::var("ARTIFACTAPI_LOG").unwrap_or_default();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives(&wanted)))
        .with_writer(|| Discreet(std::io::stderr()))
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Writes what it is given, a line at a time, without the secrets in it.
struct Discreet<W>(W);

impl<W: Write> Write for Discreet<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(hidden(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A level without a name is this program's; where it is less than what libraries say, theirs too.
fn directives(wanted: &str) -> String {
    let (named, levels): (Vec<&str>, Vec<&str>) = wanted
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty())
        .partition(|directive| directive.parse::<LevelFilter>().is_err());
    let level: Option<LevelFilter> = levels.last().and_then(|level| level.parse().ok());
    let mut all = match level {
        Some(level) if level < LevelFilter::INFO => level.to_string(),
        _ => LIBRARIES.to_owned(),
    };
    if let Some(level) = level {
        all.push_str(&format!(",artifactapi={level}"));
    }
    for directive in named {
        all.push(',');
        all.push_str(directive);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_unless_they_are_named() {
        assert_eq!(directives(""), LIBRARIES);
        assert_eq!(directives("debug"), format!("{LIBRARIES},artifactapi=debug"));
        assert_eq!(
            directives("trace, h2=debug"),
            format!("{LIBRARIES},artifactapi=trace,h2=debug")
        );
        assert_eq!(directives("warn"), "warn,artifactapi=warn");
        assert_eq!(directives("off"), "off,artifactapi=off");
        assert_eq!(
            directives("pingora_proxy=trace"),
            format!("{LIBRARIES},pingora_proxy=trace")
        );
    }
}
