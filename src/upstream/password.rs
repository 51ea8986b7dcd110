//! The credentials of a remote: fixed ones, or a password that a program writes and renews.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use quick_cache::sync::Cache;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;

use super::failure::Failure;
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

/// `Authorization: Basic`.
#[derive(Debug)]
pub(super) struct Basic {
    pub header: HeaderValue,
    /// When its password is to be asked for again; `None` for one that does not change.
    pub until: Option<Instant>,
}

/// What a program wrote, and when.
#[derive(Debug, Clone)]
struct Written {
    at: Instant,
    password: Secret,
}

/// What is known of a program.
#[derive(Debug, Default)]
struct State {
    /// The last that it wrote: a later failure does not make it worse.
    written: Option<Written>,
    /// When it ended last.
    ended: Option<Instant>,
    /// Why it wrote nothing, if it did not when it ran last.
    failed: Option<String>,
}

#[derive(Debug, Default)]
struct Program {
    state: parking_lot::Mutex<State>,
    /// Held while it runs: those who wait for a run share its outcome, those who can do without do not wait.
    running: Mutex<()>,
}

/// Passwords of programs, by what is run.
#[derive(Debug)]
pub(super) struct Passwords {
    programs: Cache<PasswordCommand, Arc<Program>>,
    least: Duration,
}

impl Default for Passwords {
    fn default() -> Self {
        Passwords {
            programs: Cache::new(REMEMBERED),
            least: LEAST,
        }
    }
}

impl Passwords {
    /// What authorizes `remote`; `None` for one without credentials. `refused`: upstream has refused what this gave last,
    /// so that a program is asked for another.
    ///
    /// # Errors
    /// The program gave none.
    pub(super) async fn basic(&self, remote: &Remote, refused: bool) -> Result<Option<Basic>, Failure> {
        let Some(credentials) = &remote.credentials else {
            return Ok(None);
        };
        let (password, until) = match &credentials.password {
            Password::Fixed(password) => (password.clone(), None),
            Password::Command(command) => {
                let written = self.written(remote, command, refused).await?;
                (written.password, written.at.checked_add(command.ttl))
            }
        };
        Ok(basic(credentials, &password).map(|header| Basic { header, until }))
    }

    async fn written(&self, remote: &Remote, command: &PasswordCommand, refused: bool) -> Result<Written, Failure> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(program) = self.programs.get_or_insert_with(command, fresh);
        let failure = |why: String| Failure {
            status: 502,
            reason: format!("`password_command` gave no password: {why}"),
            unreachable: true,
        };
        let least = self.least.min(command.ttl);
        let settled = || program.state.lock().settled(command.ttl, refused.then_some(least));
        if let Some(settled) = settled() {
            return settled.map_err(failure);
        }
        let _running = program.running.lock().await;
        if let Some(settled) = settled() {
            return settled.map_err(failure);
        }
        let outcome = run(command, LIMIT).await;
        if let Err(why) = &outcome {
            tracing::warn!(remote = %remote.name, program = %command.argv[0], %why, "`password_command` gave no password");
        }
        program.state.lock().ended(command.ttl, outcome).map_err(failure)
    }
}

impl State {
    /// What is to be had without a run. `least`: upstream has refused what was written, and a run that ended this long ago
    /// may be followed by another.
    fn settled(&self, ttl: Duration, least: Option<Duration>) -> Option<Result<Written, String>> {
        let within = |limit| self.ended.is_some_and(|ended| ended.elapsed() < limit);
        match (self.young(ttl), &self.failed) {
            (Some(written), _) if least.is_none_or(within) => Some(Ok(written)),
            (None, Some(why)) if within(PAUSE) => Some(Err(why.clone())),
            _ => None,
        }
    }

    /// Notes the outcome of a run. What was written before it outlives a failure: a refusal may be about something else.
    fn ended(&mut self, ttl: Duration, outcome: Result<Secret, String>) -> Result<Written, String> {
        let now = Instant::now();
        self.ended = Some(now);
        match outcome {
            Ok(password) => {
                let written = Written { at: now, password };
                self.failed = None;
                self.written = Some(written.clone());
                Ok(written)
            }
            Err(why) => {
                self.failed = Some(why.clone());
                self.young(ttl).ok_or(why)
            }
        }
    }

    /// What was written, while it is younger than its time.
    fn young(&self, ttl: Duration) -> Option<Written> {
        self.written.clone().filter(|written| written.at.elapsed() < ttl)
    }
}

fn basic(credentials: &Credentials, password: &Secret) -> Option<HeaderValue> {
    let pair = format!("{}:{}", credentials.username, password.reveal());
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A program and all that it has started: killed when nobody waits for it any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // What has ended already is no harm: the leader is not waited for, so that its id is not another's.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs a program without a shell. Nothing of what it writes is ever logged, not even its complaints.
async fn run(command: &PasswordCommand, limit: Duration) -> Result<Secret, String> {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err("no program is named".to_owned());
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let mut group = Group(leader);
    let ended = tokio::time::timeout(limit, async {
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_OUTPUT + 1).read_to_end(&mut output).await?;
        }
        let status = child.wait().await?;
        // Its id may be another's from now on.
        group.0 = None;
        Ok::<_, std::io::Error>((status, output))
    });
    let (status, output) = match ended.await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => return Err(format!("reading its output failed: {error}")),
        Err(_) => return Err(format!("it did not end within {} s", limit.as_secs())),
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
    use std::path::Path;

    use super::*;
    use crate::formats::testing::remote;

    fn shell(script: &str) -> PasswordCommand {
        PasswordCommand {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ttl: Duration::from_secs(600),
        }
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn a_password_is_one_trimmed_line() {
        let run_shell = |script: &str| block_on(run(&shell(script), LIMIT));
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

    #[test]
    fn what_a_program_has_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (late, dropped) = (folder.path().join("late"), folder.path().join("dropped"));
        let script = |mark: &Path| shell(&format!("(sleep 1; touch '{}'; sleep 30) | cat", mark.display()));
        block_on(async {
            let limit = Duration::from_millis(300);
            let why = run(&script(&late), limit).await.unwrap_err();
            assert!(why.contains("did not end"), "{why}");
            let command = script(&dropped);
            assert!(tokio::time::timeout(limit, run(&command, LIMIT)).await.is_err());
            tokio::time::sleep(Duration::from_millis(1500)).await;
        });
        assert!(!late.exists() && !dropped.exists(), "they went on");
    }

    #[test]
    fn a_refusal_costs_no_password_that_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let mark = mark.display();
        let mut remote = remote("docker", "https://registry.example.com/");
        remote.credentials = Some(Credentials {
            username: "robot".to_owned(),
            password: Password::Command(shell(&format!(
                "if [ -e '{mark}' ]; then sleep 2; exit 1; fi; touch '{mark}'; echo good"
            ))),
        });
        let passwords = Passwords {
            least: Duration::ZERO,
            ..Passwords::default()
        };
        let header = async |refused| {
            passwords
                .basic(&remote, refused)
                .await
                .map(|basic| basic.unwrap().header)
        };
        block_on(async {
            let good = header(false).await.unwrap();
            let others = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                tokio::time::timeout(Duration::from_secs(1), header(false)).await
            };
            let (refused, others) = tokio::join!(header(true), others);
            // Those who were not refused did not wait, and a program that fails leaves what there is.
            assert_eq!(others.expect("in time").unwrap(), good);
            assert_eq!(refused.unwrap(), good);
            assert_eq!(header(false).await.unwrap(), good);
        });
    }
}
