//! A Redis server of one test.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;

/// A running server that keeps nothing when it stops; dropping it kills it.
pub struct Redis {
    pub address: SocketAddr,
    folder: tempfile::TempDir,
    options: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    pub async fn start() -> Redis {
        Redis::with(&[]).await
    }

    /// With options as on its command line.
    pub async fn with(options: &[&str]) -> Redis {
        let mut redis = Redis {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, super::free_port())),
            folder: tempfile::tempdir().expect("a folder"),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            child: None,
        };
        redis.launch().await;
        redis
    }

    /// Starts it again, on the same address and with nothing in it.
    pub async fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        // One program under several names; the package whose name is the server's would also start it as a service.
        let mut command = Command::new("redis-check-rdb");
        command
            .arg0("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
            .arg(self.address.port().to_string())
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("redis-check-rdb: {error}; scripts/test --install"));
        self.child = Some(child);
        let address = self.address;
        super::eventually(Duration::from_secs(20), "Redis listens", async || {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// A connection to look behind the scenes.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = ::redis::Client::open(self.url()).expect("a URL");
        let connected = client.get_multiplexed_async_connection().await;
        connected.expect("a connection")
    }

    /// Ends it; everything that it held is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub async fn restart_empty(&mut self) {
        self.kill();
        self.launch().await;
    }

    /// The server hangs: connections are taken and nothing is answered.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.as_ref().map(Child::id).expect("it runs");
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("a signal sent");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
