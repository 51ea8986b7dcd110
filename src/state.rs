//! What the process knows of itself while it serves: the configuration in force, whether it stops, and what is in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::catalog::unix_now;
use crate::config::{Config, Environment, Flags, Problem, Severity};

/// What outlives a request: the current configuration, and how many requests there are.
pub struct State {
    config: ArcSwap<Config>,
    flags: Flags,
    environment: Environment,
    reloading: Mutex<()>,
    last_reload_failed: AtomicBool,
    last_failure: Mutex<Option<ReloadFailure>>,
    stopping: AtomicBool,
    in_flight: AtomicUsize,
    idle: Notify,
    reloaded: Notify,
}

/// Why a reload changed nothing.
#[derive(Debug, Clone)]
pub struct ReloadFailure {
    /// In Unix seconds.
    pub at: i64,
    /// The first error, and how many there were.
    pub detail: String,
}

/// One request in flight.
pub struct InFlight(Arc<State>);

impl ReloadFailure {
    fn of(problems: &[Problem]) -> Self {
        let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
        let first = errors.clone().next().map(ToString::to_string).unwrap_or_default();
        let detail = match errors.count() {
            0 | 1 => first,
            number => format!("{first} (and {} more, see the log)", number - 1),
        };
        ReloadFailure { at: unix_now(), detail }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl State {
    /// The state of a process that begins with `config`; the others are what reloads read beside the files.
    pub fn new(config: Config, flags: Flags, environment: Environment) -> Arc<Self> {
        Arc::new(State {
            config: ArcSwap::from_pointee(config),
            flags,
            environment,
            reloading: Mutex::new(()),
            last_reload_failed: AtomicBool::new(false),
            last_failure: Mutex::new(None),
            stopping: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            reloaded: Notify::new(),
        })
    }

    /// The configuration as of now; a request takes it once.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Counts a request until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }

    /// How many requests are being answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the last reload failed, so that the configuration before it is still in force.
    pub fn last_reload_failed(&self) -> bool {
        self.last_reload_failed.load(Ordering::Relaxed)
    }

    /// The last reload that failed, whatever came after it.
    pub fn last_reload_failure(&self) -> Option<ReloadFailure> {
        self.last_failure.lock().clone()
    }

    /// Whether a signal has ended the accepting of connections.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Reads the configuration again, all of it, and swaps it in; on any error the old one stays.
    pub fn reload(&self) {
        let _one_at_a_time = self.reloading.lock();
        let current = self.config();
        let generation = current.generation + 1;
        let loaded = crate::config::reload(&current, &self.flags, &self.environment, generation);
        for problem in &loaded.problems {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
        match loaded.config {
            Some(config) => {
                tracing::info!(
                    generation,
                    remotes = config.remotes.len(),
                    "the configuration was reloaded"
                );
                self.config.store(Arc::new(config));
                self.reloaded.notify_one();
                self.last_reload_failed.store(false, Ordering::Relaxed);
            }
            None => {
                tracing::error!(
                    generation = current.generation,
                    "the new configuration has errors: the one before stays in force"
                );
                *self.last_failure.lock() = Some(ReloadFailure::of(&loaded.problems));
                self.last_reload_failed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Says that connections are not accepted any more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits until a reload has changed the configuration. For one task.
    pub async fn reloaded(&self) {
        self.reloaded.notified().await;
    }

    /// Waits until no request is in flight, at most for `limit`.
    pub async fn drained(&self, limit: Duration) {
        let waited = Instant::now();
        while waited.elapsed() < limit {
            let idle = self.idle.notified();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), idle).await;
        }
        let left = self.in_flight.load(Ordering::Acquire);
        if left > 0 {
            tracing::warn!(left, "stopping with requests in flight");
        }
    }
}
