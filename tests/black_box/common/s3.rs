//! Real S3 servers, each in a folder and on a port of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use artifactapi::bucket::{Client, Failure};
use artifactapi::config::{S3, Secret};
use rustix::process::{Pid, Signal, kill_process};

use super::clients::tool;

const ACCESS_KEY: &str = "artifact";
pub const SECRET_KEY: &str = "geheim-geheim";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Minio,
    /// Another code base, with objects as files.
    Versity,
}

/// A running server; dropping it kills it.
pub struct S3Server {
    kind: Kind,
    pub address: SocketAddr,
    folder: tempfile::TempDir,
    child: Option<Child>,
}

impl S3Server {
    pub async fn start(kind: Kind) -> S3Server {
        let mut server = S3Server::prepare(kind);
        server.launch().await;
        server
    }

    /// One that does not run yet.
    pub fn prepare(kind: Kind) -> S3Server {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("data")).expect("a folder");
        S3Server {
            kind,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, super::free_port())),
            folder,
            child: None,
        }
    }

    /// Starts it, also again, on the same data and address.
    pub async fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let data = self.folder.path().join("data");
        let (address, folder) = (self.address.to_string(), self.folder.path());
        let mut command = match self.kind {
            Kind::Minio => {
                let mut command = Command::new(tool("go/bin/minio"));
                command
                    .env("MINIO_ROOT_USER", ACCESS_KEY)
                    .env("MINIO_ROOT_PASSWORD", SECRET_KEY)
                    .env("MINIO_BROWSER", "off")
                    .args(["server", "--quiet", "--address", &address]);
                command
            }
            Kind::Versity => {
                let mut command = Command::new(tool("go/bin/versitygw"));
                command
                    .env("ROOT_ACCESS_KEY", ACCESS_KEY)
                    .env("ROOT_SECRET_KEY", SECRET_KEY)
                    .args(["--port", &address, "posix"]);
                command
            }
        };
        let log = std::fs::File::create(folder.join("log")).expect("a log");
        command
            .arg(data)
            .env("HOME", folder)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        self.child = Some(command.spawn().expect("an S3 server"));
        let client = self.client("any-bucket");
        super::eventually(
            Duration::from_secs(30),
            "the S3 server answers",
            async || match tokio::time::timeout(Duration::from_secs(1), client.ping()).await {
                Ok(Ok(())) => true,
                Ok(Err(failure)) => failure.is_missing_bucket(),
                Err(_) => false,
            },
        )
        .await;
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_raw(child.id() as i32).expect("a pid");
        kill_process(pid, signal).expect("a signal sent");
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP: connections are taken, and nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How to reach a bucket of it.
    pub fn settings(&self, bucket: &str) -> S3 {
        settings(self.address, bucket)
    }

    /// To look for oneself.
    pub fn client(&self, bucket: &str) -> Client {
        Client::new(&self.settings(bucket)).expect("a client")
    }

    /// What the program is to be started with.
    pub fn env(&self, bucket: &str) -> Vec<(&'static str, String)> {
        env(self.address, bucket)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A bucket of a server that is reached at `address`.
pub fn settings(address: SocketAddr, bucket: &str) -> S3 {
    S3 {
        endpoint: format!("http://{address}/").parse().expect("a URL"),
        access_key: Secret::new(ACCESS_KEY),
        secret_key: Secret::new(SECRET_KEY),
        bucket: bucket.to_owned(),
        region: None,
    }
}

/// These settings, for the program's environment.
pub fn env(address: SocketAddr, bucket: &str) -> Vec<(&'static str, String)> {
    vec![
        ("MINIO_ENDPOINT", address.to_string()),
        ("MINIO_ACCESS_KEY", ACCESS_KEY.to_owned()),
        ("MINIO_SECRET_KEY", SECRET_KEY.to_owned()),
        ("MINIO_BUCKET", bucket.to_owned()),
    ]
}

/// All names under the program's prefix.
pub async fn names(client: &Client) -> Vec<String> {
    let (mut names, mut next) = (Vec::new(), None);
    loop {
        let page = client.list(1000, next.as_deref()).await.expect("a listing");
        names.extend(page.objects.into_iter().map(|listed| listed.object));
        next = page.next;
        if next.is_none() {
            return names;
        }
    }
}

/// Puts an object that is not the program's.
pub async fn put(client: &Client, object: &str, body: &str) -> Result<(), Failure> {
    client.put(object, &[], body.len() as u64, body.to_owned().into()).await
}
