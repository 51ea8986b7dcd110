//! A TCP proxy before a server, by which a test makes the network bad: slow, silent, or gone.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Every piece, in either direction, is held up for so long.
    Passing(Duration),
    /// Connections are taken and kept, and nothing passes.
    Stalled,
    Cut,
}

/// What of the bytes that pass is kept for a test to look at.
const KEPT: usize = 1 << 20;

/// What has passed, in both directions.
#[derive(Default)]
struct Passed {
    bytes: AtomicU64,
    first: Mutex<Vec<u8>>,
    /// The first megabyte of what came while nothing passed.
    held: Mutex<Vec<u8>>,
}

impl Passed {
    fn keep(kept: &Mutex<Vec<u8>>, piece: &[u8]) {
        let mut kept = kept.lock().expect("whole");
        let room = KEPT.saturating_sub(kept.len()).min(piece.len());
        kept.extend_from_slice(&piece[..room]);
    }
}

/// A link to one server; dropping it cuts it for good.
pub struct Link {
    pub address: SocketAddr,
    to: watch::Sender<SocketAddr>,
    mode: watch::Sender<Mode>,
    passed: Arc<Passed>,
    task: AbortHandle,
}

impl Link {
    pub async fn start(to: SocketAddr) -> Link {
        let listener = super::listen_low();
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("its address");
        let (mode, watched) = watch::channel(Mode::Passing(Duration::ZERO));
        let (to, leading) = watch::channel(to);
        let passed = Arc::<Passed>::default();
        let task = tokio::spawn(run(listener, leading, watched, Arc::clone(&passed)));
        Link {
            address,
            to,
            mode,
            passed,
            task: task.abort_handle(),
        }
    }

    /// New connections lead to another server from now on.
    pub fn lead_to(&self, to: SocketAddr) {
        self.to.send_replace(to);
    }

    /// Nothing passes any more, and nobody is told.
    pub fn stall(&self) {
        self.mode.send_replace(Mode::Stalled);
    }

    /// Every piece is held up for `delay`, in either direction.
    pub fn delay(&self, delay: Duration) {
        self.mode.send_replace(Mode::Passing(delay));
    }

    /// Closes all connections and refuses new ones.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// All is well again; what was stalled goes on.
    pub fn restore(&self) {
        self.mode.send_replace(Mode::Passing(Duration::ZERO));
    }

    /// Bytes that have passed, in both directions.
    pub fn bytes(&self) -> u64 {
        self.passed.bytes.load(Relaxed)
    }

    /// Whether `text` came in one piece while nothing passed.
    pub fn holds(&self, text: &str) -> bool {
        let held = self.passed.held.lock().expect("whole");
        held.windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// The first megabyte of what has passed, in both directions.
    pub fn first_bytes(&self) -> Vec<u8> {
        self.passed.first.lock().expect("whole").clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    listener: std::net::TcpListener,
    to: watch::Receiver<SocketAddr>,
    mut mode: watch::Receiver<Mode>,
    passed: Arc<Passed>,
) {
    let address = listener.local_addr().expect("its address");
    let mut listener = Some(TcpListener::from_std(listener).expect("a listener"));
    let mut connections = JoinSet::new();
    loop {
        let cut = *mode.borrow_and_update() == Mode::Cut;
        match (&listener, cut) {
            (_, true) => {
                listener = None;
                connections.shutdown().await;
                if mode.changed().await.is_err() {
                    return;
                }
            }
            (None, false) => {
                let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, address.port())).await;
                listener = Some(bound.expect("the port of before"));
            }
            (Some(open), false) => tokio::select! {
                changed = mode.changed() => if changed.is_err() { return },
                accepted = open.accept() => if let Ok((stream, _)) = accepted {
                    let to = *to.borrow();
                    connections.spawn(carry(stream, to, mode.clone(), Arc::clone(&passed)));
                },
                Some(_) = connections.join_next() => {}
            },
        }
    }
}

async fn carry(client: TcpStream, to: SocketAddr, mode: watch::Receiver<Mode>, passed: Arc<Passed>) {
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    // When either side has had enough, the other one's half-closed rest still passes.
    tokio::join!(
        pass(client_read, server_write, mode.clone(), &passed),
        pass(server_read, client_write, mode, &passed),
    );
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut mode: watch::Receiver<Mode>,
    passed: &Passed,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let got = from.read(&mut buffer).await.unwrap_or(0);
        if *mode.borrow() == Mode::Stalled {
            Passed::keep(&passed.held, &buffer[..got]);
        }
        let Ok(now) = mode
            .wait_for(|mode| matches!(mode, Mode::Passing(_)))
            .await
            .map(|mode| *mode)
        else {
            return;
        };
        if let Mode::Passing(delay) = now
            && !delay.is_zero()
        {
            tokio::time::sleep(delay).await;
        }
        if got == 0 || to.write_all(&buffer[..got]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
        passed.bytes.fetch_add(got as u64, Relaxed);
        Passed::keep(&passed.first, &buffer[..got]);
    }
}
