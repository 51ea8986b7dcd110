//! A scripted upstream on loopback, over HTTP/1.1 or HTTP/2, with or without TLS.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::pattern::Pattern;

/// Something that is closed until a test opens it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub async fn passed(&self) {
        let mut receiver = self.0.subscribe();
        let _ = receiver.wait_for(|open| *open).await;
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// The request target exactly as received, query included (over HTTP/2: path and query).
    pub path: String,
    /// `1` or `2`.
    pub version: u8,
    /// Names in lower case, in order, repeated ones repeated.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
            .collect()
    }

    /// The host that was asked: `Host` or `:authority`.
    pub fn host(&self) -> &str {
        self.header("host").unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
pub enum Body {
    Bytes(Bytes),
    Pattern(Pattern),
}

impl Body {
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Pattern(pattern) => pattern.length,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self, offset: u64, most: usize) -> Bytes {
        match self {
            Self::Bytes(bytes) => {
                let from = (offset as usize).min(bytes.len());
                bytes.slice(from..(from + most).min(bytes.len()))
            }
            Self::Pattern(pattern) => pattern.bytes(offset, most),
        }
    }

    pub fn slice(&self, from: u64, to: u64) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(from as usize..to as usize)),
            Self::Pattern(pattern) => Self::Pattern(pattern.slice(from, to)),
        }
    }
}

impl From<Pattern> for Body {
    fn from(pattern: Pattern) -> Self {
        Self::Pattern(pattern)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self::Bytes(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<&[u8]> for Body {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(Bytes::copy_from_slice(bytes))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    ContentLength,
    Chunked,
    /// Neither length nor chunks: the end of the connection is the end of the body.
    UntilClose,
}

/// How a body stops before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The connection closes in good order.
    Close,
    /// The connection is reset.
    Reset,
    /// Nothing more comes, and nothing closes.
    Hang,
}

/// One scripted answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
    framing: Framing,
    claimed_length: Option<u64>,
    chunk: usize,
    delay: Duration,
    gate: Option<Gate>,
    between: Duration,
    rate: Option<u64>,
    pauses: Vec<(u64, Gate)>,
    stop: Option<(u64, Stop)>,
    before_head: Option<Stop>,
    close: bool,
    informational: Vec<u16>,
    trailers: Vec<(String, String)>,
    raw: Option<Bytes>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Body>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            framing: Framing::ContentLength,
            claimed_length: None,
            chunk: 64 * 1024,
            delay: Duration::ZERO,
            gate: None,
            between: Duration::ZERO,
            rate: None,
            pauses: Vec::new(),
            stop: None,
            before_head: None,
            close: false,
            informational: Vec::new(),
            trailers: Vec::new(),
            raw: None,
        }
    }

    pub fn ok(body: impl Into<Body>) -> Self {
        Self::new(200, body)
    }

    pub fn status(status: u16) -> Self {
        Self::new(status, "")
    }

    pub fn redirect(status: u16, location: impl Into<String>) -> Self {
        Self::new(status, "elsewhere").header("Location", location)
    }

    /// Exactly these bytes, then the connection closes.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        let mut reply = Self::status(0);
        reply.raw = Some(bytes.into());
        reply
    }

    /// The connection is reset before any header.
    pub fn reset() -> Self {
        let mut reply = Self::status(0);
        reply.before_head = Some(Stop::Reset);
        reply
    }

    /// The connection is closed before any header.
    pub fn hang_up() -> Self {
        let mut reply = Self::status(0);
        reply.before_head = Some(Stop::Close);
        reply
    }

    /// No answer ever comes.
    pub fn silence() -> Self {
        let mut reply = Self::status(0);
        reply.before_head = Some(Stop::Hang);
        reply
    }

    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn content_type(self, value: &str) -> Self {
        self.header("Content-Type", value)
    }

    pub fn etag(self, value: &str) -> Self {
        self.header("ETag", value)
    }

    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    pub fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self
    }

    /// Says this Content-Length whatever the body is.
    pub fn claim_length(mut self, length: u64) -> Self {
        self.claimed_length = Some(length);
        self
    }

    /// The size of the pieces that a body, or what is raw, is written in.
    pub fn pieces(mut self, bytes: usize) -> Self {
        self.chunk = bytes;
        self
    }

    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The header waits for the gate.
    pub fn gated(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// The body waits for the gate after its first `offset` bytes.
    pub fn pause_at(mut self, offset: u64, gate: &Gate) -> Self {
        self.pauses.push((offset, gate.clone()));
        self
    }

    pub fn between_pieces(mut self, delay: Duration) -> Self {
        self.between = delay;
        self
    }

    /// Bytes per second.
    pub fn rate(mut self, rate: u64) -> Self {
        self.rate = Some(rate);
        self
    }

    /// The connection closes in good order after `offset` bytes of the body.
    pub fn truncate_at(mut self, offset: u64) -> Self {
        self.stop = Some((offset, Stop::Close));
        self
    }

    /// The connection is reset after `offset` bytes of the body.
    pub fn reset_at(mut self, offset: u64) -> Self {
        self.stop = Some((offset, Stop::Reset));
        self
    }

    /// Nothing comes after `offset` bytes of the body.
    pub fn hang_at(mut self, offset: u64) -> Self {
        self.stop = Some((offset, Stop::Hang));
        self
    }

    /// `Connection: close`.
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// A 1xx answer comes first.
    pub fn informational(mut self, status: u16) -> Self {
        self.informational.push(status);
        self
    }

    /// Trailers after a chunked body.
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.into(), value.into()));
        self.framing = Framing::Chunked;
        self
    }
}

/// A file that is served as a good server serves files: validators, conditions, single ranges, HEAD.
#[derive(Clone, Debug)]
pub struct File {
    pub body: Body,
    etag: Option<String>,
    modified: Option<SystemTime>,
    headers: Vec<(String, String)>,
    shape: Reply,
}

impl File {
    pub fn new(body: impl Into<Body>) -> Self {
        let body = body.into();
        Self {
            shape: Reply::ok(body.clone()),
            body,
            etag: None,
            modified: None,
            headers: Vec::new(),
        }
    }

    /// The validator, quotes included.
    pub fn etag(mut self, etag: &str) -> Self {
        self.etag = Some(etag.into());
        self
    }

    pub fn modified(mut self, at: SystemTime) -> Self {
        self.modified = Some(at);
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn content_type(self, value: &str) -> Self {
        self.header("Content-Type", value)
    }

    /// Changes how 200 and 206 answers are sent: pauses, delays, framing.
    pub fn shaped(mut self, change: impl FnOnce(Reply) -> Reply) -> Self {
        self.shape = change(self.shape);
        self
    }

    pub fn reply(&self, seen: &Seen) -> Reply {
        if self.is_unchanged(seen) {
            return self.decorate(Reply::status(304));
        }
        let length = self.body.len();
        let wanted = if self.range_applies(seen) {
            seen.header("range")
        } else {
            None
        };
        let mut reply = self.shape.clone();
        reply.body = self.body.clone();
        match wanted.map(|value| parse_range(value, length)) {
            None | Some(Range::Ignored) => {}
            Some(Range::Part(from, to)) => {
                reply.status = 206;
                reply.body = self.body.slice(from, to);
                reply = reply.header("Content-Range", format!("bytes {from}-{}/{length}", to - 1));
            }
            Some(Range::Unsatisfiable) => {
                return self.decorate(Reply::status(416).header("Content-Range", format!("bytes */{length}")));
            }
        }
        self.decorate(reply)
    }

    fn decorate(&self, mut reply: Reply) -> Reply {
        reply = reply.header("Accept-Ranges", "bytes");
        if let Some(etag) = &self.etag {
            reply = reply.header("ETag", etag);
        }
        if let Some(modified) = self.modified {
            reply = reply.header("Last-Modified", httpdate::fmt_http_date(modified));
        }
        for (name, value) in &self.headers {
            reply = reply.header(name, value);
        }
        reply
    }

    fn is_unchanged(&self, seen: &Seen) -> bool {
        if let Some(wanted) = seen.header("if-none-match") {
            let Some(etag) = &self.etag else { return false };
            let weak = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
            return wanted.trim() == "*" || wanted.split(',').any(|tag| weak(tag) == weak(etag));
        }
        let since = seen
            .header("if-modified-since")
            .and_then(|value| httpdate::parse_http_date(value).ok());
        match (since, self.modified) {
            (Some(since), Some(modified)) => seconds(modified) <= seconds(since),
            _ => false,
        }
    }

    fn range_applies(&self, seen: &Seen) -> bool {
        match seen.header("if-range") {
            None => true,
            Some(value) if value.starts_with('"') => self.etag.as_deref() == Some(value),
            Some(value) => self.modified.map(httpdate::fmt_http_date).as_deref() == Some(value),
        }
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map(|since| since.as_secs())
        .unwrap_or_default()
}

enum Range {
    Ignored,
    Unsatisfiable,
    /// From, and one past the last.
    Part(u64, u64),
}

fn parse_range(value: &str, length: u64) -> Range {
    let Some(spec) = value.strip_prefix("bytes=") else {
        return Range::Ignored;
    };
    if spec.contains(',') {
        return Range::Ignored;
    }
    let Some((first, last)) = spec.split_once('-') else {
        return Range::Ignored;
    };
    let (from, to) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, (last + 1).min(length)),
        (Ok(first), Err(_)) if last.is_empty() => (first, length),
        (Err(_), Ok(suffix)) if first.is_empty() => (length.saturating_sub(suffix), length),
        _ => return Range::Ignored,
    };
    if from >= to {
        Range::Unsatisfiable
    } else {
        Range::Part(from, to)
    }
}

type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// How an upstream listens.
#[derive(Clone)]
enum Transport {
    Plain,
    Tls(tokio_rustls::TlsAcceptor),
}

struct Shared {
    routes: Mutex<BTreeMap<String, Handler>>,
    prefixes: Mutex<Vec<(String, Handler)>>,
    fallback: Mutex<Handler>,
    log: Mutex<Vec<Seen>>,
    arrivals: watch::Sender<usize>,
    connections: watch::Sender<usize>,
    open: watch::Sender<usize>,
    /// The most bytes of body that one answer has written so far, by request target.
    written: Mutex<BTreeMap<String, u64>>,
    transport: Transport,
}

/// The upstream. Dropping it closes everything.
pub struct Upstream {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Mutex<Option<AbortHandle>>,
    name: String,
    /// The certificate authority's file, kept as long as the upstream is.
    authority: Option<Authority>,
}

/// A certificate authority made for one test, in a file for `SSL_CERT_FILE`.
#[derive(Clone)]
pub struct Authority {
    file: Arc<tempfile::NamedTempFile>,
    issuer: Arc<rcgen::Issuer<'static, rcgen::KeyPair>>,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::new(Vec::<String>::new()).expect("parameters");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, "artifactapi test authority");
        parameters.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let file = tempfile::Builder::new().suffix(".pem").tempfile().expect("a file");
        std::fs::write(file.path(), certificate.pem()).expect("written");
        Self {
            file: Arc::new(file),
            issuer: Arc::new(rcgen::Issuer::new(parameters, key)),
        }
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A certificate for these names and its key, in PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let parameters = rcgen::CertificateParams::new(names).expect("parameters");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// A server's side for these names, offering the protocols of `alpn`.
    pub fn acceptor(&self, names: &[&str], alpn: &[&str]) -> tokio_rustls::TlsAcceptor {
        self.acceptor_for(names, alpn, None)
    }

    /// One that only clients of an authority are served by, if there is one.
    pub fn acceptor_for(
        &self,
        names: &[&str],
        alpn: &[&str],
        clients: Option<&Authority>,
    ) -> tokio_rustls::TlsAcceptor {
        use tokio_rustls::rustls;
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let (certificate, key) = self.issue(names);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("protocol versions");
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(clients) => {
                let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(clients.roots(), provider);
                config.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let mut config = config
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
            )
            .expect("a server configuration");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    }

    /// Itself, as what is trusted.
    pub fn roots(&self) -> Arc<tokio_rustls::rustls::RootCertStore> {
        use tokio_rustls::rustls::pki_types::CertificateDer;
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        let mut roots = tokio_rustls::rustls::RootCertStore::empty();
        let own = CertificateDer::from_pem_file(self.path()).expect("a certificate");
        roots.add(own).expect("a root");
        Arc::new(roots)
    }
}

impl Upstream {
    /// Plain HTTP/1.1 (and HTTP/2 by prior knowledge).
    pub async fn start() -> Self {
        Self::listen(Transport::Plain, "127.0.0.1", None).await
    }

    /// Plain HTTP at any address of this machine.
    pub async fn start_at(address: std::net::Ipv4Addr) -> Self {
        let listener = std::net::TcpListener::bind((address, 0)).expect("an address of this machine");
        Self::listen_on(listener, Transport::Plain, &address.to_string(), None).await
    }

    /// HTTPS under the name `localhost`, with HTTP/2 and HTTP/1.1 to choose from.
    pub async fn start_tls() -> Self {
        Self::start_tls_with(&Authority::new(), "localhost", &["h2", "http/1.1"]).await
    }

    /// HTTPS with an authority, a name and protocols of the test's choice.
    pub async fn start_tls_with(authority: &Authority, name: &str, alpn: &[&str]) -> Self {
        let acceptor = authority.acceptor(&[name], alpn);
        Self::listen(Transport::Tls(acceptor), name, Some(authority.clone())).await
    }

    /// HTTPS under the name `localhost`, for clients of an authority only.
    pub async fn start_tls_for(authority: &Authority, clients: &Authority) -> Self {
        let acceptor = authority.acceptor_for(&["localhost"], &["h2", "http/1.1"], Some(clients));
        Self::listen(Transport::Tls(acceptor), "localhost", Some(authority.clone())).await
    }

    async fn listen(transport: Transport, name: &str, authority: Option<Authority>) -> Self {
        Self::listen_on(super::listen_low(), transport, name, authority).await
    }

    async fn listen_on(
        listener: std::net::TcpListener,
        transport: Transport,
        name: &str,
        authority: Option<Authority>,
    ) -> Self {
        let address = listener.local_addr().expect("its address");
        let not_found: Handler = Arc::new(|seen| Reply::new(404, format!("nothing at {}\n", seen.path)));
        let upstream = Self {
            shared: Arc::new(Shared {
                routes: Mutex::default(),
                prefixes: Mutex::default(),
                fallback: Mutex::new(not_found),
                log: Mutex::default(),
                arrivals: watch::Sender::new(0),
                connections: watch::Sender::new(0),
                open: watch::Sender::new(0),
                written: Mutex::default(),
                transport,
            }),
            address,
            accepting: Mutex::new(None),
            name: name.to_owned(),
            authority,
        };
        upstream.accept(listener);
        upstream
    }

    fn accept(&self, listener: std::net::TcpListener) {
        listener.set_nonblocking(true).expect("non-blocking");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let shared = self.shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        shared.connections.send_modify(|count| *count += 1);
                        connections.spawn(serve(shared.clone(), stream));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        *self.accepting.lock().unwrap() = Some(task.abort_handle());
    }

    /// Refuses connections from now on and drops the ones that exist.
    pub async fn switch_off(&self) {
        if let Some(task) = self.accepting.lock().unwrap().take() {
            task.abort();
        }
        super::eventually(
            Duration::from_secs(10),
            "the upstream still accepts connections",
            async || TcpStream::connect(self.address).await.is_err(),
        )
        .await;
    }

    /// Listens again, on the same port.
    pub async fn switch_on(&self) {
        let mut bound = None;
        super::eventually(
            Duration::from_secs(10),
            "the upstream's port cannot be taken again",
            async || {
                bound = tokio::net::TcpSocket::new_v4()
                    .and_then(|socket| {
                        socket.set_reuseaddr(true)?;
                        socket.bind(self.address)?;
                        socket.listen(1024)
                    })
                    .and_then(TcpListener::into_std)
                    .ok();
                bound.is_some()
            },
        )
        .await;
        self.accept(bound.expect("a listener"));
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.name, self.address.port())
    }

    /// Scheme, host and port, without a slash at the end.
    pub fn base(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base())
    }

    /// The file for `SSL_CERT_FILE`.
    pub fn ca_file(&self) -> &Path {
        self.authority.as_ref().expect("an upstream with TLS").path()
    }

    /// Answers `path` (exactly as it will be received, query included or not) by a function.
    pub fn on(&self, path: &str, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> &Self {
        self.shared
            .routes
            .lock()
            .unwrap()
            .insert(path.to_owned(), Arc::new(handler));
        self
    }

    /// Answers what starts with `prefix` and has no route of its own.
    pub fn under(&self, prefix: &str, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> &Self {
        self.shared
            .prefixes
            .lock()
            .unwrap()
            .push((prefix.to_owned(), Arc::new(handler)));
        self
    }

    /// Answers everything that has no route.
    pub fn fallback(&self, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> &Self {
        *self.shared.fallback.lock().unwrap() = Arc::new(handler);
        self
    }

    /// This answer each time.
    pub fn reply(&self, path: &str, reply: Reply) -> &Self {
        self.on(path, move |_| reply.clone())
    }

    /// One answer after the other; the last one stays.
    pub fn sequence(&self, path: &str, replies: Vec<Reply>) -> &Self {
        let replies = Mutex::new(VecDeque::from(replies));
        self.on(path, move |_| {
            let mut replies = replies.lock().unwrap();
            if replies.len() > 1 {
                replies.pop_front()
            } else {
                replies.front().cloned()
            }
            .expect("an answer")
        })
    }

    pub fn file(&self, path: &str, file: File) -> &Self {
        self.on(path, move |seen| file.reply(seen))
    }

    /// The files below `folder`, at `prefix`; a folder answers with its `index.html` if it has one.
    pub fn directory(&self, prefix: &str, folder: impl Into<PathBuf>) -> &Self {
        let folder = folder.into();
        let root = prefix.to_owned();
        self.under(prefix, move |seen| {
            let path = seen.path.split('?').next().unwrap_or_default();
            let path = decode(path.strip_prefix(root.as_str()).unwrap_or(path));
            if path.split('/').any(|segment| segment == "..") {
                return Reply::status(400);
            }
            let mut file = folder.join(path.trim_start_matches('/'));
            if file.is_dir() {
                file = file.join("index.html");
            }
            let (Ok(bytes), Ok(metadata)) = (std::fs::read(&file), std::fs::metadata(&file)) else {
                return Reply::new(404, "no such file\n");
            };
            let kind = match file.extension().and_then(|extension| extension.to_str()) {
                Some("html") => "text/html; charset=utf-8",
                Some("json") => "application/json",
                Some("xml") => "text/xml",
                Some("yaml") => "text/yaml",
                _ => "application/octet-stream",
            };
            let etag = format!("\"{}\"", &super::sha256(&bytes)[..16]);
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            File::new(bytes)
                .etag(&etag)
                .modified(modified)
                .content_type(kind)
                .reply(seen)
        })
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<Seen> {
        self.shared.log.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.shared.log.lock().unwrap().clear();
    }

    /// How many requests came with this method (`*`: any) for this target, query included.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.shared
            .log
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| is(seen, method, path))
            .count()
    }

    /// The last request with this method (`*`: any) for this target.
    pub fn last(&self, method: &str, path: &str) -> Seen {
        let log = self.shared.log.lock().unwrap();
        let found = log.iter().rev().find(|seen| is(seen, method, path)).cloned();
        found.unwrap_or_else(|| panic!("no {method} {path} among {:?}", lines(&log)))
    }

    pub fn total(&self) -> usize {
        self.shared.log.lock().unwrap().len()
    }

    /// Waits until this many such requests have come.
    pub async fn wait_for(&self, method: &str, path: &str, count: usize) {
        let mut arrivals = self.shared.arrivals.subscribe();
        let arrived = async {
            while self.count(method, path) < count {
                let _ = arrivals.changed().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), arrived).await.is_err() {
            let log = self.shared.log.lock().unwrap();
            panic!("{count} x {method} {path} did not come; these did: {:?}", lines(&log));
        }
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// How many answers are being written now.
    pub fn in_flight(&self) -> usize {
        *self.shared.open.borrow()
    }

    /// The most answers that were being written at one time since the last call with a change.
    pub async fn wait_in_flight(&self, count: usize) {
        let mut open = self.shared.open.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), open.wait_for(|open| *open == count)).await;
        assert!(
            waited.is_ok(),
            "{} answers are in flight, not {count}",
            self.in_flight()
        );
    }

    /// The most bytes of body that any one answer for this target has written.
    pub fn written(&self, path: &str) -> u64 {
        self.shared
            .written
            .lock()
            .unwrap()
            .get(path)
            .copied()
            .unwrap_or_default()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(task) = self.accepting.lock().unwrap().take() {
            task.abort();
        }
    }
}

fn is(seen: &Seen, method: &str, path: &str) -> bool {
    (method == "*" || seen.method == method) && seen.path == path
}

fn lines(log: &[Seen]) -> Vec<String> {
    log.iter()
        .map(|seen| format!("{} {}", seen.method, seen.path))
        .collect()
}

/// Percent-decoding, for serving files.
pub fn decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let value = (bytes[at] == b'%')
            .then(|| path.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One accepted connection.
enum Wire {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Wire {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

/// Counts an answer as in flight for as long as it lives.
struct InFlight<'a>(&'a Shared);

impl<'a> InFlight<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.open.send_modify(|open| *open += 1);
        Self(shared)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

impl Shared {
    fn record(&self, seen: &Seen) {
        self.log.lock().unwrap().push(seen.clone());
        self.arrivals.send_modify(|arrivals| *arrivals += 1);
    }

    fn answer(&self, seen: &Seen) -> Reply {
        let bare = seen.path.split('?').next().unwrap_or_default();
        let handler = {
            let routes = self.routes.lock().unwrap();
            let exact = routes.get(&seen.path).or_else(|| routes.get(bare)).cloned();
            exact.or_else(|| {
                let prefixes = self.prefixes.lock().unwrap();
                let found = prefixes.iter().filter(|(prefix, _)| bare.starts_with(prefix.as_str()));
                found
                    .max_by_key(|(prefix, _)| prefix.len())
                    .map(|(_, handler)| handler.clone())
            })
        };
        let handler = handler.unwrap_or_else(|| self.fallback.lock().unwrap().clone());
        handler(seen)
    }

    fn wrote(&self, path: &str, bytes: u64) {
        let mut written = self.written.lock().unwrap();
        let most = written.entry(path.to_owned()).or_default();
        *most = (*most).max(bytes);
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut wire = match &shared.transport {
        Transport::Plain => Wire::Plain(stream),
        Transport::Tls(acceptor) => match acceptor.clone().accept(stream).await {
            Ok(stream) => Wire::Tls(Box::new(stream)),
            Err(_) => return,
        },
    };
    let negotiated = match &wire {
        Wire::Plain(stream) => {
            let mut start = [0; 24];
            matches!(stream.peek(&mut start).await, Ok(read) if read >= 14 && start.starts_with(b"PRI * HTTP/2.0"))
        }
        Wire::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
    };
    if negotiated {
        serve_h2(shared, wire).await;
    } else {
        let mut buffer = Vec::new();
        while let Ok(Some(seen)) = read_request(&mut wire, &mut buffer).await {
            shared.record(&seen);
            let reply = shared.answer(&seen);
            match write_reply(&shared, &mut wire, &seen, reply).await {
                Ok(true) => {}
                Ok(false) => {
                    let _ = wire.shutdown().await;
                    return;
                }
                Err(_) => return,
            }
        }
    }
}

/// Reads one request; `None` at the end of the connection.
async fn read_request(wire: &mut Wire, buffer: &mut Vec<u8>) -> io::Result<Option<Seen>> {
    let end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at;
        }
        if wire.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut rows = head.split("\r\n");
    let mut first = rows.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let path = first.next().unwrap_or_default().to_owned();
    let headers = rows
        .filter_map(|row| row.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect::<Vec<_>>();
    let mut seen = Seen {
        method,
        path,
        version: 1,
        headers,
        body: Bytes::new(),
    };
    if seen.header("expect").is_some() {
        wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let mut body = Vec::new();
    if seen.header("transfer-encoding").is_some() {
        loop {
            let line = read_line(wire, buffer).await?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            let piece = read_exact(wire, buffer, size).await?;
            read_line(wire, buffer).await?;
            if size == 0 {
                break;
            }
            body.extend(piece);
        }
    } else if let Some(length) = seen.header("content-length").and_then(|value| value.parse().ok()) {
        body = read_exact(wire, buffer, length).await?;
    }
    seen.body = body.into();
    Ok(Some(seen))
}

async fn read_line(wire: &mut Wire, buffer: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(at) = find(buffer, b"\r\n") {
            let line = String::from_utf8_lossy(&buffer[..at]).into_owned();
            buffer.drain(..at + 2);
            return Ok(line);
        }
        if wire.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn read_exact(wire: &mut Wire, buffer: &mut Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
    while buffer.len() < length {
        if wire.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.drain(..length).collect())
}

pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Where pieces of a body go.
enum Sink<'a> {
    Length(&'a mut Wire),
    Chunked(&'a mut Wire),
    H2(&'a mut h2::SendStream<Bytes>),
}

impl Sink<'_> {
    async fn piece(&mut self, piece: Bytes) -> io::Result<()> {
        match self {
            Self::Length(wire) => wire.write_all(&piece).await?,
            Self::Chunked(wire) => {
                wire.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                wire.write_all(&piece).await?;
                wire.write_all(b"\r\n").await?;
            }
            Self::H2(stream) => {
                let mut piece = piece;
                while !piece.is_empty() {
                    stream.reserve_capacity(piece.len());
                    let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                    let granted = granted.and_then(Result::ok).ok_or(io::ErrorKind::BrokenPipe)?;
                    let now = piece.split_to(granted.min(piece.len()));
                    stream.send_data(now, false).map_err(io::Error::other)?;
                }
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Length(wire) | Self::Chunked(wire) => wire.flush().await,
            Self::H2(_) => Ok(()),
        }
    }
}

/// Writes the body as scripted; says how it stopped, `None` for its natural end.
async fn produce(shared: &Shared, path: &str, reply: &Reply, sink: &mut Sink<'_>) -> io::Result<Option<Stop>> {
    let length = reply.body.len();
    let start = Instant::now();
    let mut offset = 0;
    let mut pauses = reply.pauses.clone();
    pauses.sort_by_key(|(at, _)| *at);
    let mut pauses = VecDeque::from(pauses);
    loop {
        while let Some((at, gate)) = pauses.front() {
            if *at > offset {
                break;
            }
            sink.flush().await?;
            gate.passed().await;
            pauses.pop_front();
        }
        let limit = [
            reply.stop.map(|(at, _)| at),
            pauses.front().map(|(at, _)| *at),
            Some(length),
        ];
        let limit = limit
            .into_iter()
            .flatten()
            .filter(|at| *at > offset || *at == length)
            .min()
            .unwrap_or(length);
        if let Some((at, stop)) = reply.stop
            && offset >= at
        {
            sink.flush().await?;
            return Ok(Some(stop));
        }
        if offset >= length {
            sink.flush().await?;
            return Ok(None);
        }
        let most = reply.chunk.min((limit - offset) as usize);
        let piece = reply.body.bytes(offset, most);
        offset += piece.len() as u64;
        sink.piece(piece).await?;
        shared.wrote(path, offset);
        if !reply.between.is_zero() {
            sink.flush().await?;
            tokio::time::sleep(reply.between).await;
        }
        if let Some(rate) = reply.rate {
            let due = start + Duration::from_secs_f64(offset as f64 / rate as f64);
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

/// Writes one answer; says whether the connection stays open.
async fn write_reply(shared: &Shared, wire: &mut Wire, seen: &Seen, reply: Reply) -> io::Result<bool> {
    let _in_flight = InFlight::new(shared);
    tokio::time::sleep(reply.delay).await;
    if let Some(gate) = &reply.gate {
        gate.passed().await;
    }
    if let Some(stop) = reply.before_head {
        return stop_wire(wire, stop).await;
    }
    if let Some(raw) = &reply.raw {
        for piece in raw.chunks(reply.chunk) {
            wire.write_all(piece).await?;
            wire.flush().await?;
            tokio::time::sleep(reply.between).await;
        }
        return Ok(false);
    }
    let bodiless = seen.method == "HEAD" || reply.status == 204 || reply.status == 304;
    let mut head = String::new();
    for status in &reply.informational {
        head.push_str(&format!(
            "HTTP/1.1 {status} Informational\r\nLink: </style.css>; rel=preload\r\n\r\n"
        ));
    }
    let reason = http::StatusCode::from_u16(reply.status)
        .ok()
        .and_then(|status| status.canonical_reason());
    head.push_str(&format!(
        "HTTP/1.1 {} {}\r\n",
        reply.status,
        reason.unwrap_or("Unknown")
    ));
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut framing = reply.framing;
    let stated = reply
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    match framing {
        Framing::ContentLength if reply.status == 204 || reply.status == 304 || stated => {}
        Framing::ContentLength => {
            let length = reply.claimed_length.unwrap_or(reply.body.len());
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        Framing::UntilClose => {}
    }
    let asked = seen
        .header("connection")
        .is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let close = asked || reply.close || (framing == Framing::UntilClose && !bodiless);
    if close {
        head.push_str("Connection: close\r\n");
    }
    head.push_str("\r\n");
    wire.write_all(head.as_bytes()).await?;
    if bodiless {
        wire.flush().await?;
        return Ok(!close);
    }
    if reply.status == 204 || reply.status == 304 {
        framing = Framing::ContentLength;
    }
    let mut sink = match framing {
        Framing::Chunked => Sink::Chunked(wire),
        Framing::ContentLength | Framing::UntilClose => Sink::Length(wire),
    };
    if let Some(stop) = produce(shared, &seen.path, &reply, &mut sink).await? {
        return stop_wire(wire, stop).await;
    }
    if framing == Framing::Chunked {
        wire.write_all(b"0\r\n").await?;
        for (name, value) in &reply.trailers {
            wire.write_all(format!("{name}: {value}\r\n").as_bytes()).await?;
        }
        wire.write_all(b"\r\n").await?;
    }
    wire.flush().await?;
    let short = reply.claimed_length.is_some_and(|claimed| claimed != reply.body.len());
    Ok(!close && !short)
}

async fn stop_wire(wire: &mut Wire, stop: Stop) -> io::Result<bool> {
    match stop {
        Stop::Close => Ok(false),
        Stop::Reset => {
            let _ = wire.tcp().set_zero_linger();
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Stop::Hang => {
            // Until the other side gives up.
            let mut rest = [0; 1024];
            while wire.read(&mut rest).await? > 0 {}
            Ok(false)
        }
    }
}

async fn serve_h2(shared: Arc<Shared>, wire: Wire) {
    let Ok(mut connection) = h2::server::handshake(wire).await else {
        return;
    };
    let (failed, mut failure) = tokio::sync::mpsc::channel::<()>(1);
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { break };
                streams.spawn(answer_h2(shared.clone(), request, respond, failed.clone()));
            }
            // A scripted reset takes the whole connection down.
            _ = failure.recv() => return,
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn answer_h2(
    shared: Arc<Shared>,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    failed: tokio::sync::mpsc::Sender<()>,
) {
    let (parts, mut stream) = request.into_parts();
    let mut headers = vec![(
        "host".to_owned(),
        parts
            .uri
            .authority()
            .map(|authority| authority.to_string())
            .unwrap_or_default(),
    )];
    headers.extend(
        parts
            .headers
            .iter()
            .filter(|(name, _)| *name != http::header::HOST)
            .map(|(name, value)| {
                (
                    name.as_str().to_owned(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            }),
    );
    let mut body = Vec::new();
    while let Some(Ok(data)) = stream.data().await {
        let _ = stream.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let path = parts
        .uri
        .path_and_query()
        .map(|path| path.to_string())
        .unwrap_or_default();
    let seen = Seen {
        method: parts.method.to_string(),
        path,
        version: 2,
        headers,
        body: body.into(),
    };
    shared.record(&seen);
    let reply = shared.answer(&seen);
    let _in_flight = InFlight::new(&shared);
    tokio::time::sleep(reply.delay).await;
    if let Some(gate) = &reply.gate {
        gate.passed().await;
    }
    let stop = |stop: Stop| {
        let failed = failed.clone();
        async move {
            match stop {
                Stop::Hang => std::future::pending::<()>().await,
                Stop::Reset => {
                    let _ = failed.send(()).await;
                }
                Stop::Close => {}
            }
        }
    };
    if let Some(how) = reply.before_head {
        stop(how).await;
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return;
    }
    let mut response = http::Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    let bodiless = seen.method == "HEAD" || reply.status == 204 || reply.status == 304;
    if reply.framing == Framing::ContentLength && reply.status != 304 && reply.status != 204 {
        response = response.header("content-length", reply.claimed_length.unwrap_or(reply.body.len()));
    }
    let response = response.body(()).expect("a response");
    let Ok(mut stream) = respond.send_response(response, bodiless) else {
        return;
    };
    if bodiless {
        return;
    }
    match produce(&shared, &seen.path, &reply, &mut Sink::H2(&mut stream)).await {
        Ok(None) => {
            let _ = stream.send_data(Bytes::new(), true);
        }
        Ok(Some(how)) => {
            // A reset discards what is still queued, and h2 does not say when the queue has been written.
            tokio::time::sleep(Duration::from_millis(50)).await;
            stop(how).await;
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        Err(_) => {}
    }
}
