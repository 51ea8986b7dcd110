//! The process's life: start, reload, stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::Path;
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

use crate::access_log::AccessLog;
use crate::api::Api;
use crate::backends::{self, Backends, StartError};
use crate::cache::{self, Kept, Key, Object, Observer, Store};
use crate::catalog::{Catalog, unix_now};
use crate::config::{Config, Environment, Flags, LogTarget};
use crate::fill::{Fills, Views, let_through, record};
use crate::hand_over::{Bound, HandOver, Taken};
use crate::local::Locals;
use crate::metrics::Metrics;
use crate::proxy::{Client, Entrance, Front, Hooks, Hot, acceptor};
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

/// Serves until a signal ends it; as an upgrade, in the place of the process that serves the data folder now.
///
/// # Errors
/// What it needs cannot be had.
pub fn serve(
    config: Config,
    flags: Flags,
    environment: Environment,
    mut hangups: Signals,
    is_upgrade: bool,
) -> Result<(), StartError> {
    let settings = config.settings.clone();
    let mut taken = match is_upgrade {
        true => Some(take(&settings.data_dir)?),
        false => None,
    };
    let mut bound = |addresses: &[SocketAddr]| -> Result<Vec<Bound>, StartError> {
        let addresses = addresses.iter();
        let sockets = addresses.map(
            |address| match taken.as_mut().and_then(|taken| taken.socket(*address)) {
                Some(bound) => Ok(bound),
                None => bind(*address),
            },
        );
        sockets.collect()
    };
    let (plain, tls) = settings.listeners();
    let listeners = Listeners {
        plain: bound(plain)?,
        tls: bound(tls)?,
    };
    let hand_over = HandOver::of(listeners.plain.iter().chain(&listeners.tls))
        .map_err(|error| StartError::Other(format!("the listening sockets cannot be doubled: {error}")))?;
    cache::bound_overflow(settings.cache.memory_bytes);
    let folder = settings.data_dir.display().to_string();
    let store = Store::open(&settings.data_dir, settings.cache.clone()).map_err(|error| StartError::Data {
        folder: folder.clone(),
        error,
    })?;
    let log = AccessLog::open(&settings.access_log).map_err(|error| {
        let shown = match &settings.access_log {
            LogTarget::File(path) => path.display().to_string(),
            LogTarget::Stdout | LogTarget::Off => "standard output".to_owned(),
        };
        StartError::Other(format!(
            "the access log cannot be written to {shown}: {error}; correct `access_log`"
        ))
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
    let state = State::new(config, flags, environment);

    let (reloader, reopened) = (Arc::clone(&state), log.clone());
    std::thread::Builder::new()
        .name("reload".into())
        .spawn(move || {
            for _ in hangups.forever() {
                // First: nothing of it depends on the configuration, which may be wrong.
                reopened.iter().for_each(|log| log.reopen());
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
        taken: Mutex::new(taken),
        hand_over: Arc::clone(&hand_over),
        parts: Parts {
            state: Arc::clone(&state),
            store,
            locals: Locals::new(kept, backends.bucket.clone(), backends.catalog.clone()),
            backends: backends.clone(),
            metrics,
            log: log.clone(),
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
            hand_over: Arc::clone(&hand_over),
            stopping,
        }),
    });

    store.close();
    runtime.block_on(backends.close(!hand_over.is_taken()));
    runtime.shutdown_background();
    log.iter().for_each(|log| log.close());
    tracing::info!("stopped");
    Ok(())
}

fn take(data_dir: &Path) -> Result<Taken, StartError> {
    Taken::from(data_dir).map_err(|error| {
        StartError::Other(format!(
            "no process that serves {} hands its listening sockets over ({error}): start without --upgrade, or name the \
             data folder of the one that runs",
            data_dir.display()
        ))
    })
}

/// Where this process is listened to.
struct Listeners {
    plain: Vec<Bound>,
    tls: Vec<Bound>,
}

fn bind(address: SocketAddr) -> Result<Bound, StartError> {
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

fn announce(config: &Config, listeners: &Listeners, folder: &str) {
    let plain = listeners.plain.iter().map(|(address, _)| format!("http://{address}"));
    let tls = listeners.tls.iter().map(|(address, _)| format!("https://{address}"));
    let addresses: Vec<String> = plain.chain(tls).collect();
    let names: Vec<&str> = config.remotes.keys().map(String::as_str).collect();
    let cache = &config.settings.cache;
    let text = format!(
        "artifactapi {} listens on {}\nremotes ({}): {}\nstores in {folder}: at most {} MB on disk, {} MB in memory",
        env!("CARGO_PKG_VERSION"),
        addresses.join(", "),
        names.len(),
        names.join(", "),
        cache.disk_bytes / 1_000_000,
        cache.memory_bytes / 1_000_000
    );
    if config.settings.open_writes {
        tracing::warn!("ARTIFACTAPI_OPEN_WRITES is set: whoever reaches this service may change and flush what it has");
    }
    match config.settings.access_log {
        // Nothing else stands there.
        LogTarget::Stdout => eprintln!("{text}"),
        LogTarget::Off | LogTarget::File(_) => println!("{text}"),
    }
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
    log: Option<Arc<AccessLog>>,
}

/// The one Pingora service: sets itself up inside the runtime that it will run on, listens on sockets that are bound
/// already, and stops when told to, before Pingora's own shutdown begins.
struct Listening {
    bound: Mutex<Option<Listeners>>,
    /// From the process whose place this one takes.
    taken: Mutex<Option<Taken>>,
    hand_over: Arc<HandOver>,
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
            log,
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
            log.clone(),
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
            log: log.clone(),
        });
        let mut proxy = http_proxy(&self.conf, Hooks(Arc::clone(&client)));
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(limits.idle_timeout);
        proxy.server_options = Some(options);
        let mut http2 = default_h2_options();
        http2.max_concurrent_streams(limits.http2_streams);
        http2.max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX));
        // Of each stream, beside the piece that is handed to it.
        http2.max_send_buffer_size(unread::PIECE);
        proxy.h2_options = Some(http2);
        Ok(Front::new(client, proxy))
    }
}

impl Listening {
    /// This process is about to accept connections: the one before may stop, and the next one may ask.
    fn replace_predecessor(&self) {
        let taken = self.taken.lock().take();
        let is_successor = taken.is_some();
        if let Some(Err(error)) = taken.map(Taken::confirm) {
            tracing::warn!(%error, "the process whose place this one takes has ended by itself");
        }
        let data_dir = &self.parts.state.config().settings.data_dir;
        if let Err(error) = self.hand_over.offer(data_dir, is_successor) {
            tracing::warn!(%error, "`serve --upgrade` cannot take this process's place");
        }
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
        let (Some(fds), Some(bound)) = (fds, self.bound.lock().take()) else {
            tracing::error!("cannot start: no table of listening sockets");
            std::process::exit(1);
        };
        let acceptor = match acceptor(&self.parts.state) {
            Ok(acceptor) => acceptor,
            Err(error) => {
                tracing::error!(%error, "cannot start: TLS cannot be set up");
                std::process::exit(1);
            }
        };
        let front = Arc::new(front);
        let service = |name: &str, tls, bound: Vec<Bound>| {
            let mut service = listening::Service::new(name.to_owned(), Entrance::new(Arc::clone(&front), tls));
            let mut table = fds.lock();
            for (address, listener) in bound {
                let name = address.to_string();
                debug_assert!(listener.as_raw_fd() > 2);
                table.add(name.clone(), listener.into_raw_fd());
                service.add_tcp(&name);
            }
            service
        };
        let mut plain = service("http", None, bound.plain);
        let mut tls = service("https", Some(acceptor), bound.tls);
        let (for_plain, for_tls) = (Some(fds.clone()), Some(fds.clone()));
        self.replace_predecessor();
        tokio::join!(
            Service::start_service(&mut plain, for_plain, self.stop.clone(), per_fd),
            Service::start_service(&mut tls, for_tls, self.stop.clone(), per_fd),
        );
        front.close().await;
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
    hand_over: Arc<HandOver>,
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
        self.hand_over.close();
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
