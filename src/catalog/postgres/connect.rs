//! The connections to PostgreSQL, which are made and made again by themselves.
//!
//! They live and die together: what one of them finds out about the server goes for all. A task of its own connects,
//! asks every second whether the server is still there, and begins anew when it is not. While it is away nobody waits
//! for it: the breaker is open.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::describe::describe;
use super::schema;
use super::tls;
use crate::breaker::{Away, Breaker};
use crate::catalog::CatalogError;
use crate::config::{Database, TlsMode};

/// Listings answered at once. Further ones wait: they must not take the database from what else it does.
const SCANS: usize = 2;
/// How long a listing waits for its turn.
const SCAN_WAIT: Duration = Duration::from_secs(1);
/// For one connection, name resolution, TLS and authentication included: half a dozen questions and answers, for which
/// nobody waits.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For the changes of the schema, another node's included: longer than the server's own limits for them.
const MIGRATE_LIMIT: Duration = Duration::from_secs(400);
/// How long a question may take that looks up one row.
pub(super) const LOOKUP_LIMIT: Duration = Duration::from_secs(2);
const BEAT: Duration = Duration::from_secs(1);
/// Between two attempts to connect.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Nothing that another program left in the database is found by accident. A server lets go of a client that is gone,
/// and of what it has locked. What is compiled for a question costs more than it saves here.
const ALL: &str = "
    SET search_path = pg_catalog;
    SET client_min_messages = warning;
    SET idle_in_transaction_session_timeout = '10s';
    SET tcp_keepalives_idle = 10;
    SET tcp_keepalives_interval = 5;
    SET tcp_keepalives_count = 3;
    SET jit = off;
";
/// A batch finds its rows by the index, however few the statistics believe that there are.
const WRITER: &str = "
    SET statement_timeout = '20s';
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
";
const LOOKUP: &str = "SET statement_timeout = '1500ms'; SET default_transaction_read_only = on;";
/// In microseconds.
const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
/// A page walks the index of its order.
const SCAN: &str = "
    SET statement_timeout = '900ms';
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET enable_sort = off;
";

/// What all connections share.
pub(super) struct Server {
    settings: Database,
    pub(super) breaker: Arc<Breaker>,
    session: watch::Sender<Option<Arc<Session>>>,
    /// What the last attempt to reach it brought, while it is away.
    trouble: Mutex<String>,
}

/// The connections of one time that the server was there.
pub(super) struct Session {
    pub(super) writer: tokio::sync::Mutex<Client>,
    /// Answers short questions of many at once.
    pub(super) lookup: Client,
    scans: Arc<Scans>,
    lost: Notify,
}

struct Scans {
    idle: Mutex<Vec<Client>>,
    turns: Arc<Semaphore>,
}

/// A connection of one's own for a while.
pub(super) struct Lent {
    client: Option<Client>,
    scans: Arc<Scans>,
    _turn: OwnedSemaphorePermit,
}

impl Deref for Lent {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client.as_ref().expect("it is taken out by `drop` only")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Client {
        self.client.as_mut().expect("it is taken out by `drop` only")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Whoever asked may have gone before the answer was there: it comes in order and is thrown away.
        self.scans.idle.lock().extend(self.client.take());
    }
}

impl Session {
    /// A connection for a listing.
    ///
    /// # Errors
    /// Too many wait already.
    pub(super) async fn scan(&self) -> Result<Lent, CatalogError> {
        let busy = CatalogError::Busy("too many questions wait");
        let turn = timeout(SCAN_WAIT, self.scans.turns.clone().acquire_owned())
            .await
            .map_err(|_| busy.clone())?
            .map_err(|_| CatalogError::Closed)?;
        let client = self.scans.idle.lock().pop();
        Ok(Lent {
            client: Some(client.ok_or(busy)?),
            scans: self.scans.clone(),
            _turn: turn,
        })
    }
}

impl Server {
    pub(super) fn new(settings: Database) -> Server {
        Server {
            settings,
            breaker: Breaker::new("postgres"),
            session: watch::Sender::new(None),
            trouble: Mutex::new("it is being connected to".to_owned()),
        }
    }

    /// The connections, if there are any.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) fn session(&self) -> Result<Arc<Session>, CatalogError> {
        let session = self.session.borrow().clone();
        session.ok_or_else(|| {
            self.breaker.skip();
            self.away()
        })
    }

    /// Waits until the first attempt to connect has ended, however it did.
    pub(super) async fn tried(&self, limit: Duration) {
        let mut session = self.session.subscribe();
        let connected = session.wait_for(|session| session.is_some() || !self.breaker.is_closed());
        let _ = timeout(limit, connected).await;
    }

    fn away(&self) -> CatalogError {
        CatalogError::Unavailable(self.trouble.lock().clone())
    }

    /// Asks the server something unless it is known to be away. What it answers with an error is told apart from no
    /// answer, after which all connections are made anew.
    pub(super) async fn ask<T>(
        &self,
        session: &Session,
        limit: Duration,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, CatalogError> {
        let answer = async {
            match question.await {
                Ok(answer) => Ok(Ok(answer)),
                Err(error) if is_an_answer(&error) => Ok(Err(error)),
                Err(error) => Err(self.about(&describe(&error))),
            }
        };
        match self.breaker.call(limit, answer).await {
            Ok(answer) => Ok(answer),
            Err(Away::Open(_)) => Err(self.away()),
            Err(away @ Away::TimedOut(..)) => Err(self.lost(session, self.about(&away.to_string()))),
            Err(Away::Failed(_, why)) => Err(self.lost(session, why)),
        }
    }

    fn lost(&self, session: &Session, why: String) -> CatalogError {
        *self.trouble.lock() = why.clone();
        session.lost.notify_one();
        CatalogError::Unavailable(why)
    }

    fn about(&self, what: &str) -> String {
        format!("PostgreSQL at {}:{}: {what}", self.settings.host, self.settings.port)
    }

    /// Connects, and connects again, for ever.
    pub(super) async fn keep_connected(self: Arc<Self>) {
        let mut pause = MIN_PAUSE;
        loop {
            let why = match self.connect().await {
                Ok((session, mut connections)) => {
                    pause = MIN_PAUSE;
                    let session = Arc::new(session);
                    self.breaker.close();
                    self.session.send_replace(Some(session.clone()));
                    let why = self.watch(&session, &mut connections).await;
                    self.session.send_replace(None);
                    // Here the connections end, and with them every question that still waits for its answer.
                    drop(connections);
                    why
                }
                Err(why) => Some(why),
            };
            if let Some(why) = why {
                let why = self.about(&why);
                let before = std::mem::replace(&mut *self.trouble.lock(), why.clone());
                if before != why && !self.breaker.is_closed() {
                    tracing::warn!(%why, "the database is away for another reason");
                }
                self.breaker.fail(why);
                // So that `tried` looks again.
                self.session.send_replace(None);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Returns when the server is lost, with the reason if nobody has told it yet.
    async fn watch(&self, session: &Session, connections: &mut JoinSet<String>) -> Option<String> {
        loop {
            tokio::select! {
                ended = connections.join_next() => {
                    return Some(match ended {
                        Some(Ok(why)) => why,
                        Some(Err(error)) => error.to_string(),
                        None => "there is no connection".to_owned(),
                    });
                }
                () = session.lost.notified() => return None,
                () = tokio::time::sleep(BEAT) => {
                    if !self.breaker.is_closed() {
                        return None;
                    }
                    // What goes wrong wakes the arm above.
                    let asked = Instant::now();
                    let looking = session.lookup.query_typed_one(CLOCK, &[]);
                    if let Ok(Ok(row)) = self.ask(session, LOOKUP_LIMIT, looking).await
                        && let Ok(theirs) = row.try_get(0)
                    {
                        self.breaker.clock_was(theirs, asked);
                    }
                }
            }
        }
    }

    async fn connect(&self) -> Result<(Session, JoinSet<String>), String> {
        let connector = tls::connector(&self.settings.tls)?;
        let mut connections = JoinSet::new();
        let mut writer = self.open(&connector, WRITER, &mut connections).await?;
        timeout(MIGRATE_LIMIT, schema::migrate(&mut writer))
            .await
            .map_err(|_| "the catalogue's schema is being changed for too long".to_owned())??;
        let lookup = self.open(&connector, LOOKUP, &mut connections).await?;
        let mut scans = Vec::with_capacity(SCANS);
        for _ in 0..SCANS {
            scans.push(self.open(&connector, SCAN, &mut connections).await?);
        }
        let session = Session {
            writer: tokio::sync::Mutex::new(writer),
            lookup,
            scans: Arc::new(Scans {
                idle: Mutex::new(scans),
                turns: Arc::new(Semaphore::new(SCANS)),
            }),
            lost: Notify::new(),
        };
        Ok((session, connections))
    }

    async fn open(
        &self,
        connector: &MakeRustlsConnect,
        settings: &str,
        connections: &mut JoinSet<String>,
    ) -> Result<Client, String> {
        let config = self.config();
        let opened = async {
            let (client, connection) = config.connect(connector.clone()).await?;
            connections.spawn(async move {
                match connection.await {
                    Ok(()) => "the connection was closed".to_owned(),
                    Err(error) => describe(&error),
                }
            });
            client.batch_execute(&format!("{ALL}{settings}")).await?;
            Ok(client)
        };
        timeout(CONNECT_LIMIT, opened)
            .await
            .map_err(|_| format!("no connection within {CONNECT_LIMIT:?}"))?
            .map_err(|error: Error| describe(&error))
    }

    fn config(&self) -> Config {
        let Database {
            host,
            port,
            user,
            password,
            name,
            tls,
        } = &self.settings;
        let mut config = Config::new();
        config
            .host(host)
            .port(*port)
            .user(user)
            .dbname(name)
            .application_name(concat!("artifactapi ", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .tcp_user_timeout(Duration::from_secs(5))
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            // What has become a standby after a failover is as good as away.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(match tls.mode {
                // A socket in the file system needs none.
                _ if host.starts_with('/') => SslMode::Disable,
                TlsMode::Disable => SslMode::Disable,
                TlsMode::Prefer => SslMode::Prefer,
                TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
            });
        if let Some(password) = password {
            config.password(password.reveal());
        }
        config
    }
}

/// Whether the server has answered, be it with an error, and goes on with this connection.
fn is_an_answer(error: &Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        error.parsed_severity() == Some(Severity::Error) && *error.code() != SqlState::READ_ONLY_SQL_TRANSACTION
    })
}
