//! The real binary, in a folder of its own, with nothing in its environment but what a test puts there.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::client::{self, Connection, Response};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_artifactapi");

/// What a proxy is started with.
#[derive(Clone, Default)]
pub struct Settings {
    remotes: String,
    conf: Option<String>,
    env: Vec<(String, String)>,
    args: Vec<String>,
    under: Vec<String>,
    data_dir: Option<PathBuf>,
    mute: bool,
}

impl Settings {
    /// What stands under `remotes:`, at any indentation.
    pub fn remotes(mut self, yaml: &str) -> Self {
        self.remotes = document(yaml);
        self
    }

    /// `conf/artifactapi.yaml`.
    pub fn conf(mut self, yaml: &str) -> Self {
        self.conf = Some(yaml.to_owned());
        self
    }

    /// `{address}` in it becomes the proxy's own.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The program is started by this one, which must become it.
    pub fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// A data folder that outlives the proxy.
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data_dir = Some(path.to_owned());
        self
    }

    /// Runs in the control group whose list of processes this is.
    pub fn in_cgroup(self, processes: &Path) -> Self {
        let processes = processes.to_str().expect("a plain path");
        self.under(&["/bin/sh", "-c", "echo $$ > \"$0\" && exec \"$@\"", processes])
    }

    /// Nobody reads what it says.
    pub fn unheard(mut self) -> Self {
        self.mute = true;
        self
    }

    pub async fn start(self) -> Proxy {
        let folder = tempfile::tempdir().expect("a folder");
        let mut proxy = Proxy {
            settings: self,
            folder,
            address: super::refused(),
            child: None,
            log: Log::default(),
        };
        proxy.write_remotes_file(&proxy.settings.remotes.clone());
        if let Some(conf) = &proxy.settings.conf {
            std::fs::write(proxy.folder.path().join("artifactapi.yaml"), conf).expect("written");
        }
        proxy.launch().await;
        proxy
    }
}

/// `remotes:` with `yaml` indented under it; a whole document stays as it is.
fn document(yaml: &str) -> String {
    if yaml.starts_with("remotes:") {
        return yaml.to_owned();
    }
    let shortest = yaml
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(indent)
        .min()
        .unwrap_or_default();
    let mut out = String::from("remotes:\n");
    for line in yaml.lines() {
        match line.get(shortest..) {
            Some(line) if !line.trim().is_empty() => out.push_str(&format!("  {line}\n")),
            _ => out.push('\n'),
        }
    }
    out
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// What a program has said so far, on both of its outputs.
#[derive(Clone, Default)]
pub struct Log {
    text: Arc<Mutex<String>>,
    /// Held by whoever still reads its outputs.
    followers: Arc<()>,
}

impl Log {
    fn follow(&self, output: impl Read + Send + 'static) {
        let Log { text, followers } = self.clone();
        std::thread::spawn(move || {
            let _follower = followers;
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
    }

    /// Whether more may come.
    fn is_followed(&self) -> bool {
        Arc::strong_count(&self.followers) > 1
    }

    pub fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }
}

/// A running proxy; dropping it kills it.
pub struct Proxy {
    settings: Settings,
    folder: tempfile::TempDir,
    address: SocketAddr,
    child: Option<Child>,
    log: Log,
}

impl Proxy {
    pub fn settings() -> Settings {
        Settings::default()
    }

    /// With these remotes and no other setting.
    pub async fn start(remotes: &str) -> Self {
        Settings::default().remotes(remotes).start().await
    }

    /// Starts the program again after `stop` or `kill`, on the same data and the same address.
    pub async fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut again = self.log.text().is_empty() && !self.settings.mute;
        let end = Instant::now() + Duration::from_secs(20);
        let mut child = self.spawn();
        loop {
            if let Ok(mut connection) = Connection::try_open(self.address).await {
                connection.send("GET", "/health/live", &[], b"").await;
                let answer = tokio::time::timeout(Duration::from_secs(5), connection.try_read_head("GET")).await;
                if matches!(answer, Ok(Ok(head)) if head.status == 200) && matches!(child.try_wait(), Ok(None)) {
                    break;
                }
            }
            if let Ok(Some(status)) = child.try_wait() {
                let limit = Duration::from_secs(5);
                super::eventually(limit, "all that it said is read", async || !self.log.is_followed()).await;
                let log = self.log.text();
                // Somebody else took the port between our look and the program's start.
                assert!(
                    again && log.contains("in use"),
                    "artifactapi ended at its start ({status}):\n{log}"
                );
                again = false;
                self.address = super::refused();
                child = self.spawn();
            }
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                panic!("artifactapi does not answer /health/live:\n{}", self.log.text());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.child = Some(child);
    }

    /// Another process of the same settings, and these arguments besides.
    pub fn successor(&self, args: &[&str]) -> Successor {
        Successor(Some(self.spawn_with(args)))
    }

    /// Takes over a process that has taken this one's place.
    pub fn adopt(&mut self, mut successor: Successor) {
        assert!(self.child.is_none(), "the one before runs yet");
        self.child = successor.0.take();
    }

    fn spawn(&self) -> Child {
        self.spawn_with(&[])
    }

    fn spawn_with(&self, args: &[&str]) -> Child {
        let mut words = self.settings.under.iter().map(String::as_str).chain([BINARY]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .env_clear()
            .current_dir(self.folder.path())
            .arg("serve")
            .args(["--listen", &self.address.to_string()])
            .arg("--remotes")
            .arg(self.remotes_file())
            .arg("--data-dir")
            .arg(self.data_dir());
        if self.settings.conf.is_some() {
            command.arg("--conf").arg(self.folder.path().join("artifactapi.yaml"));
        }
        for (name, value) in &self.settings.env {
            command.env(name, value.replace("{address}", &self.address.to_string()));
        }
        command
            .args(&self.settings.args)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{BINARY}: {error}"));
        if !self.settings.mute {
            self.log.follow(child.stdout.take().expect("its output"));
            self.log.follow(child.stderr.take().expect("its errors"));
        }
        child
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Scheme, host and port.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The absolute URL of a path below a remote.
    pub fn url(&self, remote: &str, path: &str) -> String {
        format!("http://{}{}", self.address, at(remote, path))
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn remotes_file(&self) -> PathBuf {
        self.folder.path().join("remotes.yaml")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.settings
            .data_dir
            .clone()
            .unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// Replaces `conf/artifactapi.yaml` of a proxy that has one.
    pub fn write_conf(&self, yaml: &str) {
        std::fs::write(self.folder.path().join("artifactapi.yaml"), yaml).expect("written");
    }

    /// Replaces `remotes.yaml` (the program is not told: `reload`).
    pub fn write_remotes(&self, yaml: &str) {
        self.write_remotes_file(&document(yaml));
    }

    /// Replaces it by a whole file.
    pub fn write_remotes_file(&self, text: &str) {
        std::fs::write(self.remotes_file(), text).expect("written");
    }

    /// SIGHUP.
    pub fn reload(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// SIGHUP, and waits until `/health` says another generation.
    pub async fn reload_and_wait(&self) {
        let before = self.generation().await;
        self.reload();
        super::eventually(
            Duration::from_secs(10),
            "a new generation of the configuration",
            async || self.generation().await != before,
        )
        .await;
    }

    pub async fn generation(&self) -> u64 {
        let health = client::get(self.address, "/health").await.ok().json();
        health["config_generation"]
            .as_u64()
            .unwrap_or_else(|| panic!("no generation in {health}"))
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("a signal sent");
    }

    /// SIGSTOP: it is there and does nothing.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.ended(Duration::from_secs(20)).await
    }

    /// SIGTERM, without waiting.
    pub fn ask_to_stop(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Waits for the end of the program.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait().expect("its status") {
                return status;
            }
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                panic!("artifactapi did not end within {limit:?}:\n{}", self.log.text());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.launch().await;
    }

    pub fn log(&self) -> String {
        self.log.text()
    }

    pub fn log_contains(&self, text: &str) -> bool {
        self.log.text().contains(text)
    }

    pub async fn wait_for_log(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.log_contains(text) {
            assert!(Instant::now() < end, "the log never says {text:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Resident memory in bytes: now, and the most there ever was.
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let value = |name: &str| {
            let row = status.lines().find(|row| row.starts_with(name)).expect("a row");
            let number = row
                .split_whitespace()
                .nth(1)
                .and_then(|number| number.parse::<u64>().ok());
            number.expect("a number") * 1024
        };
        (value("VmRSS:"), value("VmHWM:"))
    }

    /// GET of a path below a remote.
    pub async fn fetch(&self, remote: &str, path: &str) -> Response {
        client::get(self.address, &at(remote, path)).await
    }

    pub async fn fetch_with(&self, remote: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        client::get_with(self.address, &at(remote, path), headers).await
    }

    pub async fn head(&self, remote: &str, path: &str) -> Response {
        client::head(self.address, &at(remote, path)).await
    }

    /// Any request, on a connection of its own.
    pub async fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        Connection::open(self.address)
            .await
            .request(method, target, headers, body)
            .await
    }

    pub async fn connect(&self) -> Connection {
        Connection::open(self.address).await
    }

    /// Fetches until the answer comes from the cache: a fill is admitted a moment after its last byte has been sent.
    pub async fn until_cached(&self, remote: &str, path: &str) -> Response {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let answer = self.fetch(remote, path).await;
            if client::Headers::source(&answer) == "cache" {
                return answer;
            }
            assert!(Instant::now() < end, "never from the cache: {:?}", answer.headers);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The value of a sample of `/metrics`, the sum of those that have these labels.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = client::get(self.address, "/metrics").await.ok().text();
        text.lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// A process that is started beside a proxy; dropping it kills it.
pub struct Successor(Option<Child>);

impl Successor {
    /// Waits for an end that comes by itself.
    pub fn ends(&mut self) -> ExitStatus {
        let child = self.0.as_mut().expect("it was not adopted");
        child.wait().expect("its status")
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        self.kill();
        if failed {
            eprintln!("--- what artifactapi said\n{}---", self.log.text());
        }
    }
}

/// The request target of a path below a remote.
pub fn at(remote: &str, path: &str) -> String {
    format!("/api/v1/remote/{remote}/{}", path.trim_start_matches('/'))
}

/// The files of the stored objects in a data folder.
pub fn stored_files(data_dir: &Path) -> Vec<PathBuf> {
    let mut folders = vec![data_dir.join("objects")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(_) => files.push(entry.path()),
                // Evicted meanwhile.
                Err(_) => {}
            }
        }
    }
    files.sort();
    files
}

/// What a run of the program to its end said and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Both outputs.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs the program to its end in `folder`, with this environment only.
pub fn run_binary(folder: &Path, env: &[(&str, &str)], args: &[&str]) -> Ended {
    let mut command = Command::new(BINARY);
    command
        .env_clear()
        .envs(env.iter().copied())
        .current_dir(folder)
        .args(args);
    let output = super::clients::bounded(command, Duration::from_secs(20));
    Ended {
        code: output.code,
        stdout: output.stdout,
        stderr: output.stderr,
    }
}

/// Runs `artifactapi check` on a `remotes.yaml` with this text (a whole document).
pub fn check(remotes: &str) -> Ended {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("remotes.yaml");
    std::fs::write(&file, remotes).expect("written");
    run_binary(
        folder.path(),
        &[],
        &["check", "--remotes", file.to_str().expect("a plain path")],
    )
}
