//! Where a catalogue may be kept: the same is to be true of it everywhere.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::catalog::Catalog;
use crate::config::{self, DatabaseTls, Secret};

#[path = "../../../tests/black_box/common/postgres.rs"]
#[allow(dead_code)]
mod server;

pub(crate) use server::{DATABASE, PASSWORD, Postgres as Server, USER};

/// What connections live on, as in the program.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
});

pub(super) trait Place {
    /// Holds nothing.
    fn new() -> Self;
    /// Any number of times.
    async fn open(&self) -> Catalog;
}

pub(super) struct File(pub(super) TempDir);

impl Place for File {
    fn new() -> Self {
        File(tempfile::tempdir().expect("a directory"))
    }

    async fn open(&self) -> Catalog {
        Catalog::open(self.0.path()).expect("a catalogue")
    }
}

impl Place for Server {
    fn new() -> Self {
        Server::start()
    }

    async fn open(&self) -> Catalog {
        let (catalog, _) = Catalog::open_postgres(&settings(self), RUNTIME.handle()).expect("a catalogue");
        healthy(&catalog).await;
        catalog
    }
}

/// How a server is configured.
pub(crate) fn settings(server: &Server) -> config::Database {
    config::Database {
        host: "127.0.0.1".into(),
        port: server.port(),
        user: USER.into(),
        password: Some(Secret::new(PASSWORD)),
        name: DATABASE.into(),
        tls: DatabaseTls::default(),
    }
}

pub(crate) async fn healthy(catalog: &Catalog) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !catalog.status().healthy {
        assert!(Instant::now() < deadline, "{catalog:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a test of each function for each database.
macro_rules! on_every_database {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] $(#[$attribute])* async fn $name() {
                super::$name(<crate::catalog::tests::places::File as crate::catalog::tests::places::Place>::new()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test] $(#[$attribute])* async fn $name() {
                super::$name(<crate::catalog::tests::places::Server as crate::catalog::tests::places::Place>::new()).await;
            })*
        }
    };
}
pub(super) use on_every_database;
