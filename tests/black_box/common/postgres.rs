//! A PostgreSQL server of a test's own: on a port of its own, in a folder of its own, ended with the test.
//!
//! Used by the tests in `src/` too, so it leans on nothing else here.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

pub(crate) const USER: &str = "app";
pub(crate) const PASSWORD: &str = "geheim+app";
pub(crate) const DATABASE: &str = "postgres";

/// Whom a server runs as where the tests run as root, as whom it refuses to run: nobody.
const NOBODY: u32 = 65_534;
const LIMIT: Duration = Duration::from_secs(30);

/// The server. Dropping it kills it.
pub(crate) struct Postgres {
    folder: tempfile::TempDir,
    port: u16,
    options: Vec<String>,
    process: Option<Child>,
}

impl Default for Postgres {
    fn default() -> Self {
        Self::prepare()
    }
}

impl Postgres {
    /// A new one, running.
    pub(crate) fn start() -> Self {
        let mut server = Self::prepare();
        server.launch();
        server
    }

    /// A new one that does not run yet.
    pub(crate) fn prepare() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Postgres {
            port: free_port(),
            options: Vec::new(),
            process: None,
            folder,
        };
        let password = server.folder.path().join("password");
        std::fs::write(&password, PASSWORD).expect("written");
        server.give(&password);
        server.give(server.folder.path());
        let output = as_other_user("initdb")
            .args(["--username", USER, "--auth", "scram-sha-256", "--pwfile"])
            .arg(&password)
            .args(["--no-sync", "--locale", "C", "--encoding", "UTF8", "--pgdata"])
            .arg(server.data())
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .expect("initdb");
        assert!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        server
    }

    /// Adds a setting, `name=value`, for the next launch.
    pub(crate) fn option(&mut self, setting: &str) -> &mut Self {
        self.options.push(setting.to_owned());
        self
    }

    /// Starts it, again if need be, on the same port and data.
    pub(crate) fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = std::fs::File::create(self.log_file()).expect("a log");
        let mut command = as_other_user("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k", ""])
            .args(["-c", "fsync=off", "-c", "logging_collector=off"])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        for setting in &self.options {
            command.args(["-c", setting]);
        }
        self.process = Some(command.spawn().expect("postgres"));
        let end = Instant::now() + LIMIT;
        // The last line of this file says so when it takes connections.
        while !std::fs::read_to_string(self.data().join("postmaster.pid"))
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
        {
            let ended = self.process.as_mut().expect("started").try_wait().expect("its status");
            assert!(
                ended.is_none() && Instant::now() < end,
                "postgres does not start:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as an operator would: what it was told is on its disk, and clients are sent away.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::INT);
        self.ended();
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn kill(&mut self) {
        if self.process.is_some() {
            self.resume();
            self.signal(Signal::QUIT);
            self.ended();
        }
    }

    /// The server still accepts connections and never answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        self.signal_children(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal_children(Signal::CONT);
        self.signal(Signal::CONT);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What the program is told of it.
    pub(crate) fn env(&self) -> [(&'static str, String); 5] {
        [
            ("DBHOST", "127.0.0.1".to_owned()),
            ("DBPORT", self.port.to_string()),
            ("DBUSER", USER.to_owned()),
            ("DBPASS", PASSWORD.to_owned()),
            ("DBNAME", DATABASE.to_owned()),
        ]
    }

    /// A connection as the superuser.
    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user(USER)
            .password(PASSWORD)
            .dbname(DATABASE);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client
    }

    /// Runs statements as the superuser, and returns the first column of what they bring.
    pub(crate) async fn sql(&self, statements: &str) -> Vec<String> {
        use tokio_postgres::SimpleQueryMessage::Row;
        let answer = self.connect().await.simple_query(statements).await;
        let answer = answer.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
        let first = |message| match message {
            Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        };
        answer.into_iter().filter_map(first).collect()
    }

    /// A file beside its data, that it may read and nobody else.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let file = self.folder.path().join(name);
        std::fs::write(&file, content).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("its own");
        self.give(&file);
        file
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn give(&self, path: &Path) {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("another owner");
        }
    }

    fn pid(&self) -> Pid {
        let process = self.process.as_ref().expect("it runs");
        Pid::from_raw(process.id().cast_signed()).expect("a pid")
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("a signal sent");
    }

    fn signal_children(&self, signal: Signal) {
        for child in self.children() {
            // It may have ended just now.
            let _ = rustix::process::kill_process(child, signal);
        }
    }

    fn children(&self) -> Vec<Pid> {
        let parent = self.pid().as_raw_nonzero().to_string();
        let child = |entry: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // After the name, which may hold anything: state and parent.
            let (_, fields) = stat.rsplit_once(") ")?;
            if fields.split(' ').nth(1) != Some(&parent) {
                return None;
            }
            Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)
        };
        std::fs::read_dir("/proc")
            .expect("processes")
            .flatten()
            .filter_map(child)
            .collect()
    }

    fn ended(&mut self) {
        let mut process = self.process.take().expect("it runs");
        let end = Instant::now() + LIMIT;
        while process.try_wait().expect("its status").is_none() {
            if Instant::now() > end {
                let _ = process.kill();
                let _ = process.wait();
                panic!("postgres did not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what postgres said\n{}---", self.log());
        }
        if self.process.is_some() {
            // The parent first: its children, if they run, see that it is gone and end.
            let children = self.children();
            let _ = rustix::process::kill_process(self.pid(), Signal::KILL);
            for child in children {
                let _ = rustix::process::kill_process(child, Signal::CONT);
            }
            let _ = self.process.take().map(|mut process| process.wait());
        }
    }
}

/// One of PostgreSQL's programs: as it is installed on this machine, or where `scripts/test` puts it.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = ["ARTIFACTAPI_TOOLS", "ARTIFACTAPI_CACHE"]
        .into_iter()
        .filter_map(std::env::var_os)
        .chain(std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/artifactapi").into_os_string()));
    let found = std::env::split_paths(&path)
        .chain(tools.map(|tools| Path::new(&tools).join("postgres")))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: run scripts/test, which installs it"))
}

/// A command that does not run as root: as nobody, with what it takes to reach its program in root's home. It ends with
/// the thread that starts it, whatever becomes of the test.
fn as_other_user(name: &str) -> Command {
    let program = program(name);
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if rustix::process::geteuid().is_root() {
        let nobody = NOBODY.to_string();
        command
            .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
            .args(["--securebits", "+no_setuid_fixup"])
            .args(["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]);
    }
    command.arg(program);
    command
}

/// Below the range from which the kernel takes ports for clients: it must be free again after a stop.
fn free_port() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    for attempt in 0..2_000_u32 {
        let random = RandomState::new().hash_one((std::process::id(), attempt));
        let port = 10_000 + (random % 22_000) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 10000 and 32000");
}
