//! The credentials of a remote: fixed ones, or a password that a program writes and renews.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use quick_cache::sync::Cache;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;

use super::Failure;
use crate::config::{Credentials, Password, PasswordCommand, Remote, Secret};

/// A program that writes a password has this long.
const LIMIT: Duration = Duration::from_secs(30);
/// A password that upstream refuses is asked for again, at most this often.
const LEAST: Duration = Duration::from_secs(60);
/// After a failure the program is not run again for this long.
const PAUSE: Duration = Duration::from_secs(5);
/// No token is longer.
const MAX_OUTPUT: u64 = 64 << 10;
const REMEMBERED: usize = 1024;

/// What a program last wrote, or why it wrote nothing.
type Written = Option<(Instant, Result<Secret, String>)>;

/// Passwords of programs, by what is run.
#[derive(Debug)]
pub struct Passwords {
    written: Cache<PasswordCommand, Arc<Mutex<Written>>>,
}

impl Default for Passwords {
    fn default() -> Self {
        Passwords {
            written: Cache::new(REMEMBERED),
        }
    }
}

impl Passwords {
    /// `Authorization: Basic` of `remote`; `None` for one without credentials. `refused`: upstream has refused what this
    /// gave last, so that a program is asked for another.
    ///
    /// # Errors
    /// The program gave none.
    pub async fn basic(&self, remote: &Remote, refused: bool) -> Result<Option<HeaderValue>, Failure> {
        let Some(credentials) = &remote.credentials else {
            return Ok(None);
        };
        let password = match &credentials.password {
            Password::Fixed(password) => password.clone(),
            Password::Command(command) => self.written(remote, command, refused).await?,
        };
        Ok(basic(credentials, &password))
    }

    async fn written(&self, remote: &Remote, command: &PasswordCommand, refused: bool) -> Result<Secret, Failure> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(slot) = self.written.get_or_insert_with(command, fresh);
        // Those who wait for a run share its outcome.
        let mut written = slot.lock().await;
        let known = written.as_ref().filter(|(at, outcome)| {
            let limit = match outcome {
                Err(_) => PAUSE,
                Ok(_) if refused => LEAST.min(command.ttl),
                Ok(_) => command.ttl,
            };
            at.elapsed() < limit
        });
        let outcome = match known {
            Some((_, outcome)) => outcome.clone(),
            None => {
                let outcome = run(command).await;
                if let Err(why) = &outcome {
                    tracing::warn!(remote = %remote.name, program = %command.argv[0], %why, "`password_command` gave no password");
                }
                *written = Some((Instant::now(), outcome.clone()));
                outcome
            }
        };
        outcome.map_err(|why| Failure {
            status: 502,
            reason: format!("`password_command` gave no password: {why}"),
            unreachable: true,
        })
    }
}

fn basic(credentials: &Credentials, password: &Secret) -> Option<HeaderValue> {
    let pair = format!("{}:{}", credentials.username, password.reveal());
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Runs a program without a shell. Nothing of what it writes is ever logged, not even its complaints.
async fn run(command: &PasswordCommand) -> Result<Secret, String> {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err("no program is named".to_owned());
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let ended = tokio::time::timeout(LIMIT, async {
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_OUTPUT + 1).read_to_end(&mut output).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, output))
    });
    let (status, output) = match ended.await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => return Err(format!("reading its output failed: {error}")),
        Err(_) => return Err(format!("it did not end within {} s", LIMIT.as_secs())),
    };
    if !status.success() {
        return Err(format!("it ended with {status}"));
    }
    let text = String::from_utf8(output).unwrap_or_default();
    let text = text.trim();
    if text.is_empty() || text.len() as u64 > MAX_OUTPUT || text.contains(|c: char| c.is_control()) {
        return Err("it wrote nothing, or more than one line".to_owned());
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_shell(script: &str) -> Result<Secret, String> {
        let command = PasswordCommand {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ttl: LEAST,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(run(&command))
    }

    #[test]
    fn a_password_is_one_trimmed_line() {
        assert_eq!(run_shell("echo '  secret '").unwrap().reveal(), "secret");
        for bad in [
            "exit 3",
            "true",
            "printf 'a\\nb\\n'",
            "head -c 100000 /dev/zero | tr '\\0' a",
        ] {
            let error = run_shell(bad).unwrap_err();
            assert!(!error.contains("aaa"), "{error}");
        }
    }
}
