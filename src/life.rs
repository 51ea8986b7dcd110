//! The process's life: start, reload, stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::apps::HttpServerOptions;
use pingora_core::protocols::http::v2::server::default_h2_options;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora_core::services::Service;
use pingora_core::services::listening;
use pingora_proxy::http_proxy;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::watch;

use crate::api::Api;
use crate::backends::{self, Backends, StartError};
use crate::cache::{self, Kept, Key, Object, Observer, Store};
use crate::catalog::{Catalog, unix_now};
use crate::config::{Config, Environment};
use crate::fill::{Fills, Views, let_through, record};
use crate::local::Locals;
use crate::metrics::Metrics;
use crate::proxy::{Client, Front, Hooks, Hot};
use crate::relist;
use crate::session::unread::{self, Unread};
use crate::state::State;
use crate::upstream::{SharedTokens, Upstream};

/// What ends after the requests (the catalogue, the connections to what stands behind) has this long.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Catches SIGHUP from now on: without a handler it kills. Called before anything else is set up.
///
/// # Errors
/// The system allows no handler.
pub fn catch_hangups() -> io::Result<Signals> {
    Signals::new([SIGHUP])
}

/// Lets this process have as many files and connections as the system allows: the usual soft limit is for programs that
/// use `select`.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Worth no more than a try: with what there is it runs too.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Hears of SIGTERM, SIGINT and SIGQUIT, and ends the process if it has not ended when it should have. On a thread of its
/// own: the others may hang, in a file system or a pipe that nobody reads.
fn catch_stops(limit: Duration) -> Result<watch::Receiver<bool>, StartError> {
    let failed = |error| StartError::Other(format!("the signals that stop this process cannot be caught: {error}"));
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT]).map_err(failed)?;
    let (asking, asked) = watch::channel(false);
    std::thread::Builder::new()
        .name("stop".into())
        .spawn(move || {
            signals.forever().next();
            asking.send_replace(true);
            std::thread::sleep(limit + CLOSE_LIMIT);
            // Nothing is said: that could hang too.
            std::process::exit(1);
        })
        .map_err(failed)?;
    Ok(asked)
}

/// Serves until a signal ends it.
///
/// # Errors
/// What it needs cannot be had.
pub fn serve(config: Config, environment: Environment, mut hangups: Signals) -> Result<(), StartError> {
    let settings = config.settings.clone();
    let listeners = settings
        .listen
        .iter()
        .map(|address| bind(*address))
        .collect::<Result<Vec<_>, _>>()?;
    cache::bound_overflow(settings.cache.memory_bytes);
    let folder = settings.data_dir.display().to_string();
    let store = Store::open(&settings.data_dir, settings.cache.clone()).map_err(|error| StartError::Data {
        folder: folder.clone(),
        error,
    })?;
    let kept = Kept::open(&settings.data_dir, store, settings.cache.scrub_rate)
        .map_err(|error| StartError::Other(format!("a thread cannot be started: {error}")))?;
    let runtime = backends::runtime()?;
    let backends = Backends::new(&settings, store, runtime.handle().clone())?;
    let catalog = backends.catalog.clone();
    let metrics = Arc::new(Metrics::new());
    store.observe(Box::new(Witness {
        catalog: catalog.clone(),
        store,
        metrics: Arc::clone(&metrics),
    }));
    announce(&config, &listeners, &folder);
    let state = State::new(config, environment);

    let reloader = Arc::clone(&state);
    std::thread::Builder::new()
        .name("reload".into())
        .spawn(move || {
            for _ in hangups.forever() {
                reloader.reload();
            }
        })
        .map_err(|error| StartError::Other(format!("a thread cannot be started: {error}")))?;

    let asked_to_stop = catch_stops(settings.stop_timeout)?;
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let conf = ServerConf {
        threads,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        // A runtime with an event loop of its own for each thread, as nginx has: a fifth more small hits per second than
        // one that threads share.
        work_stealing: false,
        listener_tasks_per_fd: 1,
        // What blocks is the disk; more threads than these only wait for it together.
        max_blocking_threads: Some(32),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let (stopping, stop) = watch::channel(false);
    let listening = Listening {
        bound: Mutex::new(Some(listeners)),
        parts: Parts {
            state: Arc::clone(&state),
            store,
            locals: Locals::new(kept, backends.bucket.clone(), backends.catalog.clone()),
            backends: backends.clone(),
            metrics,
        },
        conf: Arc::clone(&server.configuration),
        stop,
    };
    server.add_service(listening);
    server.run(RunArgs {
        shutdown_signal: Box::new(Stop {
            state,
            asked: asked_to_stop,
            limit: settings.stop_timeout,
            stopping,
        }),
    });

    store.close();
    runtime.block_on(backends.close());
    runtime.shutdown_background();
    tracing::info!("stopped");
    Ok(())
}

fn bind(address: SocketAddr) -> Result<(SocketAddr, TcpListener), StartError> {
    let failed = |error| StartError::Listen { address, error };
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).map_err(failed)?;
    socket.set_reuse_address(true).map_err(failed)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // One socket for both families, whatever the system's default.
        socket.set_only_v6(false).map_err(failed)?;
    }
    socket.bind(&address.into()).map_err(failed)?;
    socket.listen(4096).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().map_err(failed)?;
    Ok((address, listener))
}

fn announce(config: &Config, listeners: &[(SocketAddr, TcpListener)], folder: &str) {
    let addresses: Vec<String> = listeners
        .iter()
        .map(|(address, _)| format!("http://{address}"))
        .collect();
    let names: Vec<&str> = config.remotes.keys().map(String::as_str).collect();
    let cache = &config.settings.cache;
    println!(
        "artifactapi {} listens on {}",
        env!("CARGO_PKG_VERSION"),
        addresses.join(", ")
    );
    println!("remotes ({}): {}", names.len(), names.join(", "));
    println!(
        "stores in {folder}: at most {} MB on disk, {} MB in memory",
        cache.disk_bytes / 1_000_000,
        cache.memory_bytes / 1_000_000
    );
}

/// How long the start waits for name servers, and for the catalogue.
const LEARNING: Duration = Duration::from_secs(1);

/// Finds out which remotes are private, of each configuration that is loaded.
async fn learn(state: Arc<State>, upstream: Arc<Upstream>) {
    loop {
        let config = state.config();
        upstream.learn(&config).await;
        drop(config);
        state.reloaded().await;
    }
}

struct Parts {
    state: Arc<State>,
    store: &'static Store,
    locals: Arc<Locals>,
    backends: Backends,
    metrics: Arc<Metrics>,
}

/// The one Pingora service: sets itself up inside the runtime that it will run on, listens on sockets that are bound
/// already, and stops when told to, before Pingora's own shutdown begins.
struct Listening {
    bound: Mutex<Option<Vec<(SocketAddr, TcpListener)>>>,
    parts: Parts,
    conf: Arc<ServerConf>,
    stop: watch::Receiver<bool>,
}

impl Listening {
    async fn front(&self) -> Result<Front, StartError> {
        let Parts {
            state,
            store,
            locals,
            backends,
            metrics,
        } = &self.parts;
        let upstream = Upstream::new(&state.config(), Arc::clone(metrics))
            .map_err(|error| StartError::Other(error.to_string()))?;
        if let Some(fleet) = &backends.fleet {
            upstream.share_tokens(Arc::clone(fleet) as Arc<dyn SharedTokens>);
        }
        let shared = backends
            .shared(state)
            .map_err(|error| StartError::Other(format!("the other nodes cannot be asked: {error}")))?;
        let upstream = Arc::new(upstream);
        // Before anybody can ask: an answer to the first question must not decide it.
        let config = state.config();
        let _ = tokio::time::timeout(LEARNING, upstream.learn(&config)).await;
        drop(config);
        tokio::spawn(learn(Arc::clone(state), Arc::clone(&upstream)));
        let fills = Fills::new(store, upstream, backends.catalog.clone(), Arc::clone(metrics), shared);
        // What a database says that is away so far is read when it answers.
        let config = state.config();
        let read = fills.let_through.read(&backends.catalog, &config);
        let _ = tokio::time::timeout(LEARNING, read).await;
        drop(config);
        tokio::spawn(let_through::keep_reading(Arc::clone(&fills), Arc::clone(state)));
        backends.start(&fills);
        tokio::spawn(Arc::clone(locals).keep_listed());
        let views = Arc::new(Views::new(
            store,
            backends.catalog.clone(),
            Arc::clone(metrics),
            Arc::clone(&fills.let_through),
        ));
        let api = Api::new(
            Arc::clone(state),
            Arc::clone(&fills),
            Arc::clone(&views),
            Arc::clone(locals),
            Arc::clone(metrics),
            backends.clone(),
        );
        let limits = state.config().settings.clients;
        Unread::limit(&limits);
        let client = Arc::new(Client {
            state: Arc::clone(state),
            fills,
            views,
            locals: Arc::clone(locals),
            metrics: Arc::clone(metrics),
            api,
            hot: Hot::default(),
            limits,
        });
        let mut proxy = http_proxy(&self.conf, Hooks(Arc::clone(&client)));
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(limits.idle_timeout);
        proxy.server_options = Some(options);
        let mut http2 = default_h2_options();
        http2.max_concurrent_streams(limits.http2_streams);
        // Of each stream, beside the piece that is handed to it.
        http2.max_send_buffer_size(unread::PIECE);
        proxy.h2_options = Some(http2);
        Ok(Front::new(client, proxy))
    }
}

#[async_trait]
impl Service for Listening {
    async fn start_service(&mut self, fds: Option<ListenFds>, _: ShutdownWatch, per_fd: usize) {
        let front = match self.front().await {
            Ok(front) => front,
            Err(error) => {
                tracing::error!(%error, "cannot start");
                std::process::exit(1);
            }
        };
        let mut service = listening::Service::new("listening".to_owned(), front);
        let Some(fds) = fds else {
            tracing::error!("cannot start: no table of listening sockets");
            std::process::exit(1);
        };
        let bound = self.bound.lock().take().unwrap_or_default();
        {
            let mut table = fds.lock();
            for (address, listener) in bound {
                let name = address.to_string();
                debug_assert!(listener.as_raw_fd() > 2);
                table.add(name.clone(), listener.into_raw_fd());
                service.add_tcp(&name);
            }
        }
        Service::start_service(&mut service, Some(fds), self.stop.clone(), per_fd).await;
    }

    fn name(&self) -> &str {
        "artifactapi"
    }
}

/// A signal stops accepting, lets what is in flight finish within a limit, and ends at once.
struct Stop {
    state: Arc<State>,
    asked: watch::Receiver<bool>,
    limit: Duration,
    stopping: watch::Sender<bool>,
}

#[async_trait]
impl ShutdownSignalWatch for Stop {
    async fn recv(&self) -> ShutdownSignal {
        let mut asked = self.asked.clone();
        if asked.wait_for(|asked| *asked).await.is_err() {
            tracing::error!("signals cannot be caught any more: only SIGKILL will stop this process");
            return std::future::pending().await;
        }
        // Before anything is said: the log may hang.
        self.state.stop();
        self.stopping.send_replace(true);
        tracing::info!("stopping");
        self.state.drained(self.limit).await;
        ShutdownSignal::GracefulTerminate
    }
}

/// Tells the catalogue what the store sees.
struct Witness {
    catalog: Catalog,
    store: &'static Store,
    metrics: Arc<Metrics>,
}

impl Observer for Witness {
    fn used(&self, key: &Key, hits: u64) {
        let parts = key.parts();
        if !parts.is_view() {
            self.catalog
                .hits(parts.remote, parts.path, parts.form, hits, unix_now());
        }
    }

    fn found(&self, object: &Object) {
        // The last entries before a crash are lost, and so is all when the file was damaged.
        if !object.key.parts().is_view()
            && let Some(event) = record::stored(object, object.fresh.class())
        {
            self.catalog.record(event);
        }
    }

    fn evicted(&self, key: &str, bytes: u64, backed_up: bool) {
        self.metrics.evicted(bytes);
        self.lost(key, backed_up);
    }

    fn lost(&self, key: &str, backed_up: bool) {
        if backed_up {
            return;
        }
        let key = Key::from_text(key);
        if !key.parts().is_view() {
            relist::strike(&self.catalog, self.store, &key.hash, record::removed(&key));
        }
    }
}
