//! A circuit breaker for what stands behind the proxy (S3, Redis, PostgreSQL): once it failed nobody asks it any more, so
//! that nobody waits for it, until a probe finds that it answers again.
//!
//! One failure opens it. What may take long and fail for reasons of its own (an upload) reports only failures to reach the
//! service.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts};
use tokio::sync::Notify;

/// Between two probes of what does not answer.
const PROBE_PAUSE: Duration = Duration::from_millis(500);
/// A probe may take longer than a request waits; what is this slow is as good as away.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Upper bounds of the buckets for what calls take, in seconds.
const BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

/// Why a call brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Away {
    /// The dependency was not asked, because it did not answer before.
    #[error("{0} does not answer and is not asked until it does")]
    Open(&'static str),
    #[error("{0} did not answer within {1:?}")]
    TimedOut(&'static str, Duration),
    #[error("{0}: {1}")]
    Failed(&'static str, String),
}

/// How a dependency fares, for `/health` and `/metrics`.
#[derive(Debug, Clone)]
pub struct Standing {
    pub name: &'static str,
    pub healthy: bool,
    /// Why it is not, and since when.
    pub error: Option<(String, Duration)>,
    pub calls: u64,
    pub failures: u64,
    /// Calls that were not made because it was known to be away.
    pub skipped: u64,
    /// Time spent in calls that were answered.
    pub seconds: Histogram,
    /// By how many microseconds its clock was ahead of this machine's, if it has been asked.
    pub clock_ahead: Option<i64>,
}

/// In microseconds. Further apart, the clocks are said to be.
pub const MAX_SKEW: i64 = 1_000_000;

/// A limit is waited for in so many parts.
const PARTS: u32 = 10;

/// Waits for `call` as long as `limit`, of the time in which this task could run: a part of it that took longer by the clock,
/// because the machine has too much to do or the process was stopped, counts as one part, so that nobody else is blamed for
/// it. With the time that counted; `None`: the limit has passed. For a call whose answers are read on the same runtime.
pub async fn within<T>(limit: Duration, call: impl Future<Output = T>) -> Option<(T, Duration)> {
    tokio::pin!(call);
    let part = limit / PARTS;
    for passed in 0..PARTS {
        let began = Instant::now();
        if let Ok(answer) = tokio::time::timeout(part, &mut call).await {
            return Some((answer, part * passed + began.elapsed().min(part)));
        }
    }
    None
}

/// One dependency's breaker.
#[derive(Debug)]
pub struct Breaker {
    name: &'static str,
    open: AtomicBool,
    trouble: Mutex<Option<(String, Instant)>>,
    opened: Notify,
    calls: AtomicU64,
    failures: AtomicU64,
    skipped: AtomicU64,
    seconds: Histogram,
    clock: Mutex<Option<i64>>,
}

impl Breaker {
    /// A closed breaker; `name` is that of the dependency in `/health` and `/metrics`.
    pub fn new(name: &'static str) -> Arc<Breaker> {
        Arc::new(Breaker {
            name,
            open: AtomicBool::new(false),
            trouble: Mutex::new(None),
            opened: Notify::new(),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            seconds: answer_seconds(name),
            clock: Mutex::new(None),
        })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it may be asked.
    pub fn is_closed(&self) -> bool {
        !self.open.load(Relaxed)
    }

    /// Makes `call` unless the breaker is open, and opens it when that fails or takes longer than `limit`.
    ///
    /// # Errors
    /// The dependency is away. An answer that merely is not the wished one is for `T` to tell.
    pub async fn call<T, E: Display>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Away> {
        if !self.is_closed() {
            self.skip();
            return Err(Away::Open(self.name));
        }
        self.calls.fetch_add(1, Relaxed);
        let began = Instant::now();
        let away = match within(limit, call).await {
            Some((Ok(value), _)) => {
                self.seconds.observe(began.elapsed().as_secs_f64());
                return Ok(value);
            }
            Some((Err(error), _)) => Away::Failed(self.name, error.to_string()),
            None => Away::TimedOut(self.name, limit),
        };
        self.fail(away.to_string());
        Err(away)
    }

    /// Notes that its clock showed `theirs`, in microseconds since 1970, at some moment since `asked`. By how much it is
    /// ahead of this machine's.
    pub fn clock_was(&self, theirs: i64, asked: Instant) -> i64 {
        let since = i64::try_from(asked.elapsed().as_micros()).unwrap_or_default();
        let ahead = theirs - (own_micros() - since / 2);
        let before = self.clock.lock().replace(ahead).unwrap_or_default();
        if ahead.abs() >= MAX_SKEW && before.abs() < MAX_SKEW {
            tracing::warn!(
                dependency = self.name,
                seconds_ahead = ahead / 1_000_000,
                "the clocks of this machine and of a dependency differ; let NTP set both"
            );
        }
        ahead
    }

    /// Counts a call that is not made because there is nothing to make it on.
    pub fn skip(&self) {
        self.skipped.fetch_add(1, Relaxed);
    }

    /// Opens it: the dependency was found to be away by other means than a [`Breaker::call`].
    pub fn fail(&self, why: String) {
        self.failures.fetch_add(1, Relaxed);
        let mut trouble = self.trouble.lock();
        if !self.open.swap(true, Relaxed) {
            tracing::warn!(dependency = self.name, %why, "a dependency is away; downloads go on without it");
            *trouble = Some((why, Instant::now()));
            self.opened.notify_one();
        }
    }

    /// Closes it: the dependency was found to answer.
    pub fn close(&self) {
        let mut trouble = self.trouble.lock();
        if self.open.swap(false, Relaxed) {
            tracing::info!(dependency = self.name, "a dependency answers again");
            *trouble = None;
        }
    }

    /// Closes the breaker whenever it is open and `probe` succeeds. Runs for ever, in a task of its own, once.
    pub async fn keep_probing<F, E>(&self, mut probe: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), E>>,
    {
        loop {
            while self.is_closed() {
                self.opened.notified().await;
            }
            tokio::time::sleep(PROBE_PAUSE).await;
            if let Some((Ok(()), _)) = within(PROBE_LIMIT, probe()).await {
                self.close();
            }
        }
    }

    pub fn standing(&self) -> Standing {
        let trouble = self.trouble.lock().clone();
        Standing {
            name: self.name,
            healthy: self.is_closed(),
            error: trouble.map(|(why, since)| (why, since.elapsed())),
            calls: self.calls.load(Relaxed),
            failures: self.failures.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            seconds: self.seconds.clone(),
            clock_ahead: *self.clock.lock(),
        }
    }
}

/// How long calls of `name` take, for the metrics.
fn answer_seconds(name: &'static str) -> Histogram {
    let options = HistogramOpts::new(
        "artifactapi_dependency_duration_seconds",
        "Time that calls of dependencies took which were answered.",
    )
    .const_label("dependency", name)
    .buckets(BUCKETS.to_vec());
    Histogram::with_opts(options).unwrap_or_else(|error| unreachable!("names and buckets are constants: {error}"))
}

/// This machine's clock, in microseconds since 1970.
pub fn own_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_in_which_nothing_could_run_is_nobodys_fault() {
        let breaker = Breaker::new("thing");
        let limit = Duration::from_millis(50);
        let (answer, coming) = tokio::sync::oneshot::channel();
        // Whatever else runs here takes the thread for longer than anything may take, and the answer waits behind it.
        let overload = tokio::spawn(async move {
            for _ in 0..5 {
                std::thread::sleep(limit);
                tokio::task::yield_now().await;
            }
            let _ = answer.send(7);
        });
        assert_eq!(breaker.call(limit, coming).await, Ok(7));
        overload.await.expect("it ends");
        let began = Instant::now();
        let hung = breaker.call(limit, std::future::pending::<Result<u8, String>>()).await;
        assert_eq!(hung, Err(Away::TimedOut("thing", limit)));
        assert!(began.elapsed() >= limit);
    }

    #[tokio::test(start_paused = true)]
    async fn opens_at_the_first_failure_and_closes_when_a_probe_succeeds() {
        let breaker = Breaker::new("thing");
        let limit = Duration::from_millis(50);
        assert_eq!(breaker.call(limit, async { Ok::<_, String>(7) }).await, Ok(7));
        let hung = breaker.call(limit, std::future::pending::<Result<u8, String>>()).await;
        assert_eq!(hung, Err(Away::TimedOut("thing", limit)));
        let asked = breaker.call(limit, async { Ok::<_, String>(7) }).await;
        assert_eq!(asked, Err(Away::Open("thing")));
        let standing = breaker.standing();
        assert!(!standing.healthy && standing.error.is_some());
        assert_eq!((standing.calls, standing.failures, standing.skipped), (2, 1, 1));

        let mut probes = 0;
        let probing = breaker.keep_probing(|| {
            probes += 1;
            let answers = probes == 3;
            async move { if answers { Ok(()) } else { Err("not yet") } }
        });
        let closed = async {
            while !breaker.is_closed() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = probing => unreachable!("it runs for ever"),
            () = closed => {}
        }
        assert_eq!(probes, 3);
        assert!(breaker.standing().error.is_none());
        assert_eq!(breaker.call(limit, async { Ok::<_, String>(7) }).await, Ok(7));
    }
}
