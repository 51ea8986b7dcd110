//! The real clients: where `scripts/test` puts them, and how they are run.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The folder that `scripts/test` installs into.
pub fn tools() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("ARTIFACTAPI_TOOLS")
        .or_else(|| set("ARTIFACTAPI_CACHE"))
        .unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
            cache.expect("a home folder").join("artifactapi")
        })
}

/// A tool below the folder of tools, which must be there.
pub fn tool(path: &str) -> PathBuf {
    let file = tools().join(path);
    assert!(
        file.exists(),
        "{} is missing: run scripts/test, which installs it",
        file.display()
    );
    file
}

/// A program of the system, which must be there.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: run scripts/test, which installs it"))
}

/// How a client's run ended.
#[derive(Debug)]
pub struct Output {
    /// `None` when it was killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "\n{}\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn fails(self) -> Self {
        assert!(
            self.code.is_some_and(|code| code != 0),
            "{:?}\n{}\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// The code block of README that contains `part`, with the address and the remote of a test in place of its own.
#[track_caller]
pub fn readme_block(part: &str, address: std::net::SocketAddr, remote: (&str, &str)) -> String {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(readme).expect("README.md");
    let mut blocks = text.split("```").skip(1).step_by(2);
    let block = blocks.find(|block| block.contains(part));
    let block = block.unwrap_or_else(|| panic!("README shows no {part}"));
    let block = block.split_once('\n').map_or(block, |(_, block)| block);
    block
        .replace("127.0.0.1:8000", &address.to_string())
        .replace(remote.0, remote.1)
}

/// A folder for one client: its home, and where it works.
pub struct Home {
    folder: tempfile::TempDir,
    path: std::ffi::OsString,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["home", "work", "tmp"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let mut path = vec![
            tools().join("node/bin"),
            tools().join("venv/bin"),
            tools().join("go/bin"),
        ];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        Self {
            folder,
            path: std::env::join_paths(path).expect("a search path"),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder that clients are run in.
    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.work().join(name);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("a folder");
        std::fs::write(&file, text).expect("written");
        file
    }

    pub fn read(&self, name: &str) -> String {
        let file = self.work().join(name);
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// A command of this home: no environment but a home, a search path and folders for what is temporary.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("LANG", "C.UTF-8")
            .env("NO_COLOR", "1")
            .env("CI", "1")
            .current_dir(self.work());
        command
    }

    /// Runs a command off the test's own threads, for two minutes at most.
    pub async fn run(&self, command: Command) -> Output {
        run(command).await
    }
}

/// Runs a command off the test's own threads, for two minutes at most.
pub async fn run(command: Command) -> Output {
    let task = tokio::task::spawn_blocking(move || bounded(command, Duration::from_secs(120)));
    task.await.expect("the command's run")
}

/// Runs a command to its end; kills it, and only it, after `limit`.
pub fn bounded(mut command: Command, limit: Duration) -> Output {
    let shown = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let stdout = child.stdout.take().expect("its output");
    let stderr = child.stderr.take().expect("its errors");
    let stdout = std::thread::spawn(move || read_all(stdout));
    let stderr = std::thread::spawn(move || read_all(stderr));
    let end = Instant::now() + limit;
    let code = loop {
        if let Some(status) = child.try_wait().expect("its status") {
            break status.code();
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            eprintln!("killed after {limit:?}: {shown}");
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Output {
        code,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    }
}

fn read_all(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Copies a folder, making everything writable.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::write(&target, std::fs::read(entry.path()).expect("read")).expect("written");
        }
    }
}
