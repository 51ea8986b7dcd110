//! The connection to Redis that requests use, and how to tell that Redis is away.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, RedisResult,
    ScriptInvocation, ServerErrorKind,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::word::Fence;
use crate::breaker::{Away, Breaker, own_micros};
use crate::cache::set_clock;
use crate::config::Secret;

/// What a request waits for an answer.
pub(super) const LIMIT: Duration = Duration::from_millis(50);
/// What a task waits that nobody waits for.
pub(super) const PATIENT: Duration = Duration::from_millis(500);
/// Connecting, TLS and logging in.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// In microseconds: what clocks that are the same seem to differ by.
const NOISE: i64 = 20_000;
/// Calls that may be under way before further ones wait for a place.
const CALLS: usize = 1024;

/// Why there can be no fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Never tells the URL, which may hold a password.
    #[error("REDIS_URL cannot be used: {0}")]
    Url(String),
}

/// Why a command brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Away(#[from] Away),
    /// Redis is there and does not want this one command.
    #[error("Redis refuses: {0}")]
    Refused(String),
}

impl From<Failure> for Away {
    fn from(failure: Failure) -> Away {
        match failure {
            Failure::Away(away) => away,
            Failure::Refused(why) => Away::Failed("redis", why),
        }
    }
}

/// One Redis, connected or not.
#[derive(Debug)]
pub(super) struct Redis {
    client: Client,
    pub breaker: Arc<Breaker>,
    /// Where the connections are driven.
    runtime: Handle,
    connection: watch::Sender<Option<MultiplexedConnection>>,
    /// A call failed: whoever watches the connection looks now.
    pub trouble: Notify,
    /// By how many microseconds Redis's clock is taken to be ahead of this machine's.
    ahead: AtomicI64,
}

impl Redis {
    pub(super) fn new(url: &Secret, breaker: Arc<Breaker>, runtime: Handle) -> Result<Self, FleetError> {
        // Without this a small command waits for the acknowledgement of the one before.
        let tcp = TcpSettings::default().set_nodelay(true);
        let info = url.reveal().into_connection_info();
        let client = info.and_then(|info| Client::open(info.set_tcp_settings(tcp)));
        Ok(Redis {
            client: client.map_err(|error| FleetError::Url(error.to_string()))?,
            breaker,
            runtime,
            connection: watch::Sender::new(None),
            trouble: Notify::new(),
            ahead: AtomicI64::new(0),
        })
    }

    /// A new connection. Its driver is a task of the runtime that this is called in.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(CALLS);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(connected) => connected.map_err(|error| said(&error)),
            Err(_) => Err(format!("no connection within {CONNECT_LIMIT:?}")),
        }
    }

    /// Sets or takes away what [`Redis::ask`] uses.
    pub(super) fn use_connection(&self, connection: Option<MultiplexedConnection>) {
        self.connection.send_replace(connection);
    }

    /// Waits until it may be asked.
    pub(super) async fn answers(&self) {
        loop {
            let mut connection = self.connection.subscribe();
            // The sender lives as long as `self`.
            let _ = connection.wait_for(Option::is_some).await;
            if self.breaker.is_closed() {
                return;
            }
            // The breaker tells nobody that it closes.
            tokio::time::sleep(LIMIT).await;
        }
    }

    /// Makes `call` unless Redis is known to be away.
    ///
    /// # Errors
    /// Redis is away, or did not answer within `limit`: then it is not asked any more until it is found to answer. Or it
    /// refuses.
    pub(super) async fn ask<T, F>(
        &self,
        limit: Duration,
        call: impl FnOnce(MultiplexedConnection) -> F + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = RedisResult<T>> + Send,
    {
        let mut coming = self.connection.subscribe();
        let asking = async move {
            let connection = coming.borrow().clone();
            let connection = match connection {
                Some(connection) => connection,
                None => {
                    let come = coming.wait_for(Option::is_some).await;
                    come.ok()
                        .and_then(|come| come.clone())
                        .ok_or_else(|| "not connected".to_owned())?
                }
            };
            match call(connection).await {
                Ok(answer) => Ok(Ok(answer)),
                Err(error) if is_refusal(&error) => Ok(Err(said(&error))),
                Err(error) => Err(said(&error)),
            }
        };
        // Where answers are read, so that what keeps them from being read is seen.
        let breaker = Arc::clone(&self.breaker);
        let asked = self.runtime.spawn(async move { breaker.call(limit, asking).await });
        let ended = |_| Err(Away::Failed(self.breaker.name(), "the process ends".to_owned()));
        match asked.await.unwrap_or_else(ended) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => {
                tracing::warn!(why = %refusal, "Redis refused one command");
                Err(Failure::Refused(refusal))
            }
            Err(away) => {
                if !matches!(away, Away::Open(_)) {
                    self.trouble.notify_one();
                }
                Err(away.into())
            }
        }
    }

    /// Runs a script by [`Redis::ask`].
    ///
    /// # Errors
    /// Those of [`Redis::ask`].
    pub(super) async fn run<T: FromRedisValue + Send + 'static>(
        &self,
        limit: Duration,
        script: ScriptInvocation<'static>,
    ) -> Result<T, Failure> {
        let run = |mut connection| async move { script.invoke_async(&mut connection).await };
        self.ask(limit, run).await
    }

    /// Notes that Redis's clock showed `seconds` and `micros` at some moment since `asked`. All times that nodes compare are
    /// by that clock; what cannot be told from the time that the answer took changes nothing.
    pub(super) fn clock_was(&self, seconds: i64, micros: i64, asked: Instant) {
        let taken = i64::try_from(asked.elapsed().as_micros()).unwrap_or_default();
        let theirs = seconds.saturating_mul(1_000_000).saturating_add(micros);
        let ahead = self.breaker.clock_was(theirs, asked);
        if (ahead - self.ahead.load(Relaxed)).abs() > NOISE + taken / 2 {
            self.ahead.store(ahead, Relaxed);
            set_clock(ahead / 1000);
        }
    }

    /// What Redis's clock shows now, as near as is known.
    pub(super) fn now(&self) -> Fence {
        Fence(u64::try_from(own_micros().saturating_add(self.ahead.load(Relaxed))).unwrap_or_default())
    }
}

/// Whether Redis is there and does not want this one command: nothing that a reconnection would change.
fn is_refusal(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::ResponseError) | ErrorKind::UnexpectedReturnType | ErrorKind::Parse => true,
        _ => error.code() == Some("WRONGTYPE"),
    }
}

/// An error in words for people, without any secret: those of the client library name none.
pub(super) fn said(error: &RedisError) -> String {
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
            "user or password of REDIS_URL are wrong".to_owned()
        }
        _ => error.to_string(),
    }
}
