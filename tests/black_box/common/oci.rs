//! A real registry (Debian's docker-registry) and a real containerd, each a process of its own in a folder of its own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::client::{Connection, Headers};
use super::clients::{self, Home, Output};
use super::image::Manifest;

/// A program of the system, or one that `scripts/test` unpacked because installing it would start a service.
pub fn daemon(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| clients::tool(&format!("debian/usr/bin/{name}")))
}

/// A process that ends with its owner.
struct Process(Child);

impl Process {
    fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log");
        let errors = file.try_clone().expect("the log again");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let shown = format!("{command:?}");
        Self(command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}")))
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// docker-registry on loopback.
pub struct RealRegistry {
    folder: tempfile::TempDir,
    address: SocketAddr,
    process: Option<Process>,
}

impl RealRegistry {
    /// An empty one.
    pub async fn start() -> Self {
        let mut registry = Self {
            folder: tempfile::tempdir().expect("a folder"),
            address: super::refused(),
            process: None,
        };
        registry.switch_on().await;
        registry
    }

    /// With a manifest and all that it names at a tag.
    pub async fn with(repository: &str, tag: &str, manifest: &Manifest) -> Self {
        let registry = Self::start().await;
        registry.push(repository, tag, manifest).await;
        registry
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts the process; on another port if somebody took this one before it ever ran.
    pub async fn switch_on(&mut self) {
        let fresh = !self.log_file().exists();
        for attempt in 0..5 {
            let config = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: {}}}\n",
                self.folder.path().join("data").display(),
                self.address
            );
            let file = self.folder.path().join("config.yml");
            std::fs::write(&file, config).expect("written");
            let mut command = Command::new(daemon("docker-registry"));
            command.env_clear().arg("serve").arg(&file);
            let mut process = Process::start(command, &self.log_file());
            let end = Instant::now() + Duration::from_secs(20);
            while !process.has_ended() {
                if let Ok(mut connection) = Connection::try_open(self.address).await {
                    let answer = connection.request("GET", "/v2/", &[], b"").await;
                    if answer.header("docker-distribution-api-version") == Some("registry/2.0") {
                        self.process = Some(process);
                        return;
                    }
                }
                assert!(Instant::now() < end, "docker-registry does not answer:\n{}", self.log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(fresh && attempt < 4, "docker-registry ended:\n{}", self.log());
            self.address = super::refused();
        }
    }

    /// Kills it; what it holds stays.
    pub async fn switch_off(&mut self) {
        self.process = None;
        let address = self.address;
        super::eventually(
            Duration::from_secs(10),
            "the registry's port is still open",
            async || tokio::net::TcpStream::connect(address).await.is_err(),
        )
        .await;
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What it said, its access log included.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// How often it was asked for what begins like this (`GET /v2/app/blobs/`).
    pub fn count(&self, request: &str) -> usize {
        let start = format!("\"{request}");
        self.log().lines().filter(|line| line.contains(&start)).count()
    }

    /// Puts a manifest with all that it names at a tag, through the registry's push API.
    pub async fn push(&self, repository: &str, tag: &str, manifest: &Manifest) {
        for part in manifest.all() {
            for blob in &part.blobs {
                self.push_blob(repository, &blob.digest, &blob.bytes()).await;
            }
        }
        for part in manifest.all().into_iter().rev() {
            let reference = if part.digest == manifest.digest {
                tag
            } else {
                &part.digest
            };
            let path = format!("/v2/{repository}/manifests/{reference}");
            let headers = [("Content-Type", part.kind.as_str())];
            let mut connection = Connection::open(self.address).await;
            let answer = connection.request("PUT", &path, &headers, &part.bytes).await;
            assert_eq!(answer.status, 201, "{}", answer.text());
            assert_eq!(answer.must("docker-content-digest"), part.digest);
        }
    }

    async fn push_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        let mut connection = Connection::open(self.address).await;
        let headers = [("Content-Length", "0")];
        let path = format!("/v2/{repository}/blobs/uploads/");
        let started = connection.request("POST", &path, &headers, b"").await;
        assert_eq!(started.status, 202, "{}", started.text());
        let place = url::Url::parse(started.must("location")).expect("a location");
        let target = format!("{}&digest={digest}", &place[url::Position::BeforePath..]);
        let mut connection = Connection::open(self.address).await;
        let length = bytes.len().to_string();
        let headers = [
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", length.as_str()),
        ];
        let stored = connection.request("PUT", &target, &headers, bytes).await;
        assert_eq!(stored.status, 201, "{}", stored.text());
    }
}

/// containerd, asked by `ctr`.
pub struct Containerd {
    home: Home,
    folder: tempfile::TempDir,
    _process: Process,
}

impl Containerd {
    pub async fn start() -> Self {
        // A socket's path may be no longer than about a hundred bytes.
        let folder = tempfile::Builder::new()
            .prefix("c")
            .tempdir_in("/tmp")
            .expect("a folder");
        let at = folder.path().display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\n  address = \"{at}/s\"\n"
        );
        std::fs::write(folder.path().join("config.toml"), config).expect("written");
        let home = Home::new();
        let mut command = home.command(daemon("containerd"));
        command.arg("-c").arg(folder.path().join("config.toml"));
        let mut process = Process::start(command, &folder.path().join("log"));
        let end = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(folder.path().join("s")).is_err() {
            let log = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            assert!(!process.has_ended(), "containerd ended:\n{}", log());
            assert!(Instant::now() < end, "containerd does not answer:\n{}", log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self {
            home,
            folder,
            _process: process,
        }
    }

    /// Writes `hosts.toml` for a registry's name.
    pub fn hosts(&self, name: &str, toml: &str) -> &Self {
        let folder = self.folder.path().join("hosts").join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("hosts.toml"), toml).expect("written");
        self
    }

    pub async fn ctr(&self, args: &[&str]) -> Output {
        let mut command = self.home.command(daemon("ctr"));
        command.arg("-a").arg(self.folder.path().join("s")).args(args);
        self.home.run(command).await
    }

    /// `ctr images pull`, by the hosts that were written; unpacked by copying, which needs no overlay.
    pub async fn pull(&self, image: &str, more: &[&str]) -> Output {
        let hosts = self.folder.path().join("hosts");
        let hosts = hosts.to_str().expect("a plain path");
        let args = ["images", "pull", "--snapshotter", "native", "--hosts-dir", hosts];
        self.ctr(&[&args, more, &[image]].concat()).await
    }

    /// What it holds under a digest.
    pub async fn content(&self, digest: &str) -> String {
        self.ctr(&["content", "get", digest]).await.ok().stdout
    }
}
