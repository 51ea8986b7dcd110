//! Configuration: `remotes.yaml`, `conf/artifactapi.yaml`, environment and flags to one validated, immutable
//! [`Config`]. Everything that is wrong is found in one go and told with its place; see "Configuration" in the README
//! for what each key means.
//!
//! [`load`] and [`reload`] are the only ways in. They read files and nothing else of the outside: the
//! environment, the flags and the package types are handed to them.

mod address;
mod certificates;
mod context;
mod credentials;
mod environment;
mod flags;
mod headers;
mod model;
mod own_keys;
mod package;
mod pattern;
mod problem;
mod quarantine;
mod redact;
mod remotes;
mod restart;
mod section;
mod settings;
#[cfg(test)]
mod tests;
mod tokens;
mod values;
mod verify;
mod yaml;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

pub use address::is_loopback;
pub use environment::Environment;
pub use flags::Flags;
pub use model::*;
pub use package::{DefaultRemote, Doubt, Holds, OwnKey, Package};
pub use pattern::{PackagePattern, Pattern};
pub use problem::{Problem, Severity};
pub use quarantine::{Clock, Exemption, MissingDate, Mode, Quarantine};
pub use tokens::{Scope, Token, Tokens, hashed};
pub use verify::Verify;

use problem::{Fault, Report};

const DEFAULT_CONF: &str = "conf/artifactapi.yaml";
/// A thousand remotes take half a megabyte.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The outcome of a load.
#[derive(Debug)]
pub struct Loaded {
    /// `None` exactly when one of the problems is an error.
    pub config: Option<Config>,
    /// All that was found, in the order of the files.
    pub problems: Vec<Problem>,
}

/// Reads the whole configuration. Of `packages`, the first is that of remotes that name none.
pub fn load(packages: &[&'static Package], flags: &Flags, env: &Environment, generation: u64) -> Loaded {
    let report = Report::default();
    let conf = read_conf(flags, env, &report);
    let conf = conf.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    let settings = settings::read(packages, flags, env, conf, &report);
    finish(packages, settings, env, generation, report)
}

/// Reads the whole configuration again. What cannot change while the process runs stays as it is in `current`, with a
/// warning for each of it that would be another now.
pub fn reload(current: &Config, flags: &Flags, env: &Environment, generation: u64) -> Loaded {
    let packages = &current.packages;
    let report = Report::default();
    let conf = read_conf(flags, env, &report);
    let text = conf.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    let settings = settings::read(packages, flags, env, text, &report);
    let (settings, kept) = restart::keep(settings, &current.settings);
    for key in kept {
        let fault = Fault::new(format!(
            "`{key}` was changed, which takes effect when the service is started again"
        ));
        match &conf {
            Some((file, _)) => report.file_warning(file, fault),
            None => report.warning(fault),
        }
    }
    finish(packages, settings, env, generation, report)
}

/// Reads `remotes.yaml` and puts the configuration together.
fn finish(
    packages: &[&'static Package],
    settings: Settings,
    env: &Environment,
    generation: u64,
    report: Report,
) -> Loaded {
    let path = &settings.remotes_file;
    let remotes = match read_file(path) {
        Ok(text) => remotes::read(packages, path, &text, env, settings.upstream.timeouts, &report),
        Err(ReadError::Missing(fault)) => {
            let hint = "create it, or name another file with --remotes or ARTIFACTAPI_REMOTES";
            report.file_error(path, fault.hint(hint));
            remotes::Remotes::default()
        }
        Err(ReadError::Other(fault)) => {
            report.file_error(path, fault);
            remotes::Remotes::default()
        }
    };
    for (package, name) in &settings.default_remotes {
        let remote = remotes.remotes.get(name);
        if remote.is_none_or(|remote| remote.package.name != *package) {
            let fault = Fault::new(format!(
                "{package}.default_remote {name:?} is no remote of package {package}"
            ));
            report.error(fault.hint("name one of remotes.yaml, or leave it out"));
        }
    }
    check_access(&settings, &remotes.remotes, &report);
    let (problems, interpolated) = report.finish();
    let usable = problems.iter().all(|problem| problem.severity != Severity::Error);
    let remotes::Remotes { remotes, hosts } = remotes;
    let config = usable.then_some(Config {
        generation,
        packages: packages.to_vec(),
        settings,
        remotes,
        hosts,
        interpolated,
    });
    Loaded { config, problems }
}

/// Complains of protected remotes that nobody could read, and of tokens that are good for none.
fn check_access(settings: &Settings, remotes: &IndexMap<String, Arc<Remote>>, report: &Report) {
    let mut protected = remotes.values().filter(|remote| remote.protected);
    if settings.tokens.is_empty()
        && let Some(remote) = protected.next()
    {
        let fault = Fault::new(format!(
            "the remote {:?} is `protected`, and no token is configured: nobody could read it",
            remote.name
        ));
        report.error(fault.hint("add `tokens` to the settings file, or set ARTIFACTAPI_ADMIN_TOKEN"));
    }
    for token in settings.tokens.iter() {
        for pattern in token.remotes.iter().flatten() {
            if !remotes.keys().any(|name| pattern.matches(name)) {
                let (name, text) = (&token.name, &pattern.text);
                let fault = Fault::new(format!("the token {name:?} names {text:?}, which is no remote"));
                report.warning(fault.hint("name one of remotes.yaml, or use a pattern such as team-*"));
            }
        }
    }
}

/// The settings file. Only one that was asked for by name must be there.
fn read_conf(flags: &Flags, env: &Environment, report: &Report) -> Option<(PathBuf, String)> {
    let from_env = env.get("ARTIFACTAPI_CONF").unwrap_or_else(|fault| {
        report.error(fault);
        None
    });
    let named = flags.conf.clone().or_else(|| from_env.map(PathBuf::from));
    let required = named.is_some();
    let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_CONF));
    match read_file(&path) {
        Ok(text) => return Some((path, text)),
        Err(ReadError::Missing(fault)) => {
            if required {
                report.file_error(&path, fault.hint("create it, or leave --conf and ARTIFACTAPI_CONF out"));
            }
        }
        Err(ReadError::Other(fault)) => report.file_error(&path, fault),
    }
    None
}

enum ReadError {
    Missing(Fault),
    Other(Fault),
}

fn read_file(path: &Path) -> Result<String, ReadError> {
    let other = |message: String| Err(ReadError::Other(Fault::new(message)));
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > MAX_FILE => other(format!("larger than {MAX_FILE} bytes")),
        Ok(_) => match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
                other(format!("not valid UTF-8 in line {line}"))
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(ReadError::Missing(Fault::new("the file does not exist")))
        }
        Err(error) => other(format!("cannot be read: {error}")),
    }
}
