//! The harness of the black-box tests: scripted upstreams, a raw client, the real binary, the real package managers.
//!
//! Everything talks over loopback sockets. Framing is written and read by hand, so that a test can say exactly which
//! bytes arrive and when they stop.

pub mod apk;
pub mod cgroup;
pub mod client;
pub mod clients;
pub mod clock;
pub mod dns;
pub mod fleet;
pub mod h2client;
pub mod image;
pub mod link;
pub mod oci;
pub mod outbound;
pub mod packages;
pub mod pattern;
// Of it the catalogue's own tests use more.
#[allow(dead_code)]
pub mod postgres;
pub mod pull;
pub mod redis;
pub mod registry;
pub mod rpm;
pub mod s3;
pub mod server;
pub mod upstream;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

pub use client::{Connection, Response, get, get_with, head};
pub use pattern::Pattern;
pub use server::Proxy;
pub use upstream::{File, Gate, Reply, Upstream};

/// Runs one test to its end, or fails it after a minute.
pub fn run<F: Future>(test: F) -> F::Output {
    run_for(Duration::from_secs(60), test)
}

/// Runs one test to its end, or fails it after `limit`.
pub fn run_for<F: Future>(limit: Duration, test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let output = runtime.block_on(async {
        match tokio::time::timeout(limit, test).await {
            Ok(output) => output,
            Err(_) => panic!("the test did not end within {limit:?}"),
        }
    });
    runtime.shutdown_background();
    output
}

/// Waits until `condition` holds, looking often; panics with `what` when a look that began after `limit` finds that it
/// does not. A look that took long has seen an early moment only.
pub async fn eventually(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + limit;
    loop {
        let last = Instant::now() >= end;
        if condition().await {
            return;
        }
        assert!(!last, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A listener below the range from which the kernel takes ports for clients, so that the port can be given up and
/// taken again without meeting somebody's outgoing connection.
pub fn listen_low() -> TcpListener {
    use std::hash::{BuildHasher, RandomState};
    for attempt in 0..2000u32 {
        let random = RandomState::new().hash_one((std::process::id(), attempt));
        let port = 10_000 + (random % 22_000) as u16;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener;
        }
    }
    panic!("no free port between 10000 and 32000");
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = listen_low();
    listener.local_addr().expect("its address").port()
}

/// An address where connecting is refused.
pub fn refused() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(bytes))
}
