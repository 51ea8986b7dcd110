//! The short way: plain hits over HTTP/1.1, read from the connection and answered on it without a session in between.
//!
//! Every request's head is read here, once, by [`wire::read`]. One kind of request is answered: a GET without a body, a
//! range or a condition, for something that is stored and fresh. Any other goes to Pingora through a [`Gate`] that is open
//! for it alone, and the connection comes back when it is answered.

use std::cell::LazyCell;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Buf;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pingora_core::apps::{HttpServerApp, ServerApp};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::stream::Stream as Tcp;
use pingora_core::protocols::{GetSocketDigest, SocketDigest, Stream};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use pingora_timeout::timeout;
use rustix::net::SendFlags;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::accept::accepted;
use super::crowd::Crowd;
use super::gate::{Gate, READ};
use super::resolve::{Hot, Resolved};
use super::threads::Threads;
use super::transport::Transport;
use super::wire::{self, Head, Refusal};
use super::{Client, Hooks, root, serve};
use crate::access_log::{self, Asked, Line};
use crate::api::access;
use crate::cache::{Body, Object, Reader};
use crate::config::ClientSettings;
use crate::metrics::Answered;
use crate::on_behalf;
use crate::session::public::{self, Arrival};
use crate::session::writing;

/// What a connection over HTTP/2 begins with (RFC 9113 section 3.4).
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Lines before a request that are passed over (RFC 9112 section 2.2).
const MOST_EMPTY_LINES: usize = 8;
const NO_REQUEST: Refusal = Refusal {
    status: 400,
    reason: "the request begins with a bare LF or with too many empty lines",
};
/// What those are told for whom there is no room.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
    Cache-Control: no-store\r\nRetry-After: 5\r\nContent-Length: 75\r\nConnection: close\r\n\r\n\
    {\"detail\": \"too many connections: try again\", \"remote\": null, \"path\": null}";
/// What is read of a file and written at once: it stays in the processor's cache between the two.
const PIECE: u64 = 32 << 10;

/// What all connections share, by whichever entrance they come.
pub struct Front {
    client: Arc<Client>,
    proxy: Arc<HttpProxy<Hooks>>,
    threads: Arc<Threads>,
    crowd: Arc<Crowd>,
}

impl Front {
    /// Opens the way in for the requests that this process makes of itself.
    pub fn new(client: Arc<Client>, proxy: HttpProxy<Hooks>) -> Self {
        let (proxy, threads) = (Arc::new(proxy), Arc::<Threads>::default());
        // The client belongs to the proxy.
        let (weak, places) = (Arc::downgrade(&proxy), Arc::clone(&threads));
        client
            .api
            .in_process
            .open(move |stream| serve_in_process(&weak, &places, stream));
        Front {
            client,
            proxy,
            threads,
            crowd: Arc::default(),
        }
    }
}

impl Front {
    /// Ends connections that wait for their next request. For the time when no entrance is open any more: one that is closed before
    /// ends nothing for the others.
    pub async fn close(&self) {
        self.proxy.http_cleanup().await;
    }
}

/// Serves the one request of a connection that this process made to itself, on the thread that has the fewest.
fn serve_in_process(proxy: &Weak<HttpProxy<Hooks>>, threads: &Threads, stream: DuplexStream) {
    let Some(proxy) = proxy.upgrade() else { return };
    let (place, elsewhere) = threads.place();
    let serving = async move {
        let _place = place;
        // Nobody waits for a second request, so that none has to be told to go.
        let (_stop, shutdown) = watch::channel(false);
        let session = ServerSession::new_http1(Box::new(stream));
        proxy.process_new_http(session, &shutdown).await;
    };
    match elsewhere {
        Some(elsewhere) => drop(elsewhere.spawn(serving)),
        None => drop(tokio::spawn(serving)),
    }
}

/// Where connections come in: by HTTP, or by HTTPS.
pub struct Entrance {
    front: Arc<Front>,
    tls: Option<TlsAcceptor>,
}

impl Entrance {
    pub fn new(front: Arc<Front>, tls: Option<TlsAcceptor>) -> Self {
        Entrance { front, tls }
    }
}

#[async_trait]
impl ServerApp for Entrance {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let stream = *stream.into_any().downcast::<Tcp>().ok()?;
        let front = &self.front;
        let config = front.client.state.config();
        let limits = config.settings.clients;
        let address = peer_of(&stream).filter(|peer| !public::is_trusted(&config.settings.trusted_proxies, *peer));
        drop(config);
        let Some(admitted) = front.crowd.admit(&limits, address) else {
            front.turn_away(&stream, self.tls.is_some());
            return None;
        };
        match front.threads.place() {
            (place, None) => {
                let _held = (place, admitted);
                self.connection(stream, limits, shutdown).await
            }
            (place, Some(elsewhere)) => {
                let (entrance, shutdown) = (Arc::clone(self), shutdown.clone());
                elsewhere.spawn(async move {
                    let _held = (place, admitted);
                    entrance.connection(stream, limits, &shutdown).await
                });
                None
            }
        }
    }
}

impl Entrance {
    /// Serves a connection to its end.
    async fn connection(&self, stream: Tcp, limits: ClientSettings, shutdown: &ShutdownWatch) -> Option<Stream> {
        let stream = here(stream).ok()?;
        let transport = match &self.tls {
            None => Transport::Plain(Box::new(stream)),
            Some(acceptor) => match Transport::accept(acceptor, stream, limits.head_timeout).await {
                Ok(transport) => transport,
                Err(error) => {
                    tracing::debug!(%error, "a client made no TLS connection");
                    return None;
                }
            },
        };
        match transport.is_http2() {
            true => self.front.proxy.process_new(transport.into_stream(), shutdown).await,
            false => self.front.http1(transport, limits, shutdown).await,
        }
    }
}

impl Front {
    /// Says that there are too many connections, if the socket takes that at once: nobody is waited for.
    fn turn_away(&self, stream: &Tcp, is_tls: bool) {
        if !is_tls {
            let _ = rustix::net::send(socket_of(stream), TOO_MANY, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        self.client.metrics.request(&Answered {
            remote: "",
            status: 503,
            cache: "none",
            source: None,
            sent: 0,
            took: Duration::ZERO,
        });
        if self.crowd.may_complain() {
            tracing::warn!("clients are turned away: there are as many connections as `clients:` allows");
        }
    }

    /// Serves a connection to its end that begins with HTTP/1.1, or with the preface of HTTP/2.
    async fn http1(&self, transport: Transport, limits: ClientSettings, shutdown: &ShutdownWatch) -> Option<Stream> {
        // Only a new connection can begin with the preface, and under TLS both sides agree on HTTP/2 beforehand.
        let mut may_be_http2 = !transport.is_tls();
        let mut gate = Gate::new(transport, limits);
        let mut writing = Writing::default();
        loop {
            match self.next(&mut gate, may_be_http2, &mut writing).await.ok()? {
                Request::Hit(hit) if !*shutdown.borrow() => {
                    self.answer(&mut gate.stream, &mut writing, &hit, limits.write_timeout)
                        .await
                        .ok()?;
                    gate.received.advance(hit.request.length);
                }
                Request::Hit(Answer { request, .. }) | Request::Other(request) => {
                    gate.open(&request);
                    gate = self.through_pingora(gate, shutdown).await?;
                }
                Request::Http2 => {
                    let Gate { stream, received, .. } = *gate;
                    let Transport::Plain(mut stream) = stream else {
                        return None;
                    };
                    stream.rewind(&received);
                    return self.proxy.process_new(stream, shutdown).await;
                }
                Request::Refused(refusal) => {
                    self.refuse(&mut gate.stream, refusal, limits.write_timeout)
                        .await
                        .ok()?;
                    return None;
                }
            }
            may_be_http2 = false;
        }
    }
}

/// The connection, its readiness told by this thread's event loop. Pingora accepts on one thread and serves on any, and
/// every event would have to come by way of the first.
fn here(stream: Tcp) -> io::Result<Tcp> {
    let socket = socket_of(&stream).try_clone_to_owned()?;
    drop(stream);
    let descriptor = socket.as_raw_fd();
    let stream = tokio::net::TcpStream::from_std(std::net::TcpStream::from(socket))?;
    let mut stream = Tcp::from(stream);
    stream.set_socket_digest(SocketDigest::from_raw_fd(descriptor));
    Ok(stream)
}

/// Who is at the other end.
fn peer_of(stream: &impl GetSocketDigest) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip().to_canonical())
}

/// The socket below a stream, for what the stream itself cannot do.
fn socket_of(stream: &Tcp) -> BorrowedFd<'_> {
    // SAFETY: the stream owns the descriptor and is borrowed for as long as it is used.
    #[allow(unsafe_code, reason = "Pingora's stream lends its descriptor as a number only")]
    unsafe {
        BorrowedFd::borrow_raw(stream.as_raw_fd())
    }
}

/// What a connection brought.
enum Request {
    /// Its response's head is written already.
    Hit(Answer),
    /// For Pingora.
    Other(Head),
    /// The preface of HTTP/2, and what follows.
    Http2,
    /// Not to be understood, or in more than one way.
    Refused(Refusal),
}

/// What is written for a hit. The connection keeps the memory for the next one.
#[derive(Default)]
struct Writing {
    /// The response's, whole.
    head: Vec<u8>,
    /// The request's.
    id: Vec<u8>,
    /// Of the access log.
    line: Line,
}

struct Answer {
    request: Head,
    started: Instant,
    object: Arc<Object>,
    resolved: Arc<Resolved>,
}

impl Front {
    /// Waits for a request.
    ///
    /// # Errors
    /// The client is gone, or said nothing for too long.
    async fn next(&self, gate: &mut Gate, may_be_http2: bool, writing: &mut Writing) -> io::Result<Request> {
        let limits = gate.limits;
        let Gate { stream, received, .. } = gate;
        let mut begun: Option<Instant> = None;
        // A head ends with a line: nothing but that makes another look worth while.
        let mut has_line = true;
        let mut empty_lines = 0;
        loop {
            let mut limit = limits.idle_timeout;
            if !received.is_empty() {
                begun.get_or_insert_with(Instant::now);
            }
            while received.starts_with(b"\r\n") {
                received.advance(2);
                empty_lines += 1;
            }
            if empty_lines > MOST_EMPTY_LINES || received.starts_with(b"\n") {
                return Ok(Request::Refused(NO_REQUEST));
            }
            if !received.is_empty() {
                let may_be_http2 = may_be_http2 && empty_lines == 0;
                if has_line && let Some(request) = self.read(stream, received, may_be_http2, writing) {
                    return Ok(request);
                }
                if received.len() >= limits.head_bytes {
                    return Ok(Request::Refused(wire::too_long(received)));
                }
            }
            if let Some(begun) = begun {
                limit = limits.head_timeout.saturating_sub(begun.elapsed());
            }
            received.reserve(READ);
            let before = received.len();
            match timeout(limit, stream.read_buf(received)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            };
            has_line = before == 0 || received[before..].contains(&b'\n');
        }
    }

    /// Reads what was received so far; `None`: the head goes on.
    fn read(&self, stream: &Transport, received: &[u8], may_be_http2: bool, writing: &mut Writing) -> Option<Request> {
        if may_be_http2 && HTTP_2.starts_with(&received[..received.len().min(HTTP_2.len())]) {
            return (received.len() >= HTTP_2.len()).then_some(Request::Http2);
        }
        let mut fields = [MaybeUninit::uninit(); wire::MOST_FIELDS];
        let (request, read) = match wire::read(received, &mut fields) {
            Ok(read) => read?,
            Err(refusal) => return Some(Request::Refused(refusal)),
        };
        Some(match self.hit(stream, &request, writing) {
            Some((object, resolved, started)) => Request::Hit(Answer {
                request: read,
                started,
                object,
                resolved,
            }),
            None => Request::Other(read),
        })
    }

    /// Finds what a plain request asks for and writes the head of the response.
    fn hit(
        &self,
        stream: &Transport,
        request: &httparse::Request<'_, '_>,
        writing: &mut Writing,
    ) -> Option<(Arc<Object>, Arc<Resolved>, Instant)> {
        let started = Instant::now();
        let plain = Plain::read(request)?;
        let client = &self.client;
        let config = client.state.config();
        let fields = LazyCell::new(|| plain.headers(request));
        let arrival = || Arrival {
            headers: &fields,
            authority: plain.host,
            peer: peer_of(stream),
            tls: stream.is_tls(),
        };
        let host = match config.hosts.is_empty() {
            true => String::new(),
            false => public::of(&config.settings, &arrival())?.host,
        };
        let hot = Hot::key(&config, &host, plain.target, plain.accept)?;
        let resolved = client.hot.get(&hot)?;
        if resolved.remote.protected && !access::may_read(&arrival(), &config, &resolved.remote) {
            return None;
        }
        let lines = root::lines_of_hits(&resolved, plain.target)?;
        let remote_url = || public::of_remote(&config.settings, &arrival(), &resolved.remote.name, resolved.bound_host);
        let hit = client.hit(&resolved, plain.accepts_gzip, remote_url)?;
        let Writing { head, id, line } = writing;
        id.clear();
        match plain.id {
            Some(given) => id.extend_from_slice(given.as_bytes()),
            None => on_behalf::write_new(id),
        }
        serve::write_head(&hit.object, &hit.dress, (lines, id), head)?;
        if client.log.is_some() {
            let asked = Asked {
                id,
                client: match plain.is_forwarded {
                    true => public::client(&config.settings.trusted_proxies, &arrival()),
                    false => peer_of(stream).map(|peer| peer.to_canonical()),
                },
                method: request.method,
                target: Some(plain.target),
                protocol: "HTTP/1.1",
                user_agent: plain.user_agent,
            };
            line.begin(&asked, Duration::ZERO);
        }
        Some((hit.object, Arc::clone(&resolved), started))
    }

    async fn answer(
        &self,
        stream: &mut Transport,
        writing: &mut Writing,
        answer: &Answer,
        limit: Duration,
    ) -> io::Result<()> {
        let client = &self.client;
        let _in_flight = client.state.enter();
        client.fills.store.count_use(&answer.object);
        let sent = send(stream, &writing.head, &answer.object, limit).await;
        let remote = &answer.resolved.remote;
        let length = sent.as_ref().map_or(0, |()| answer.object.length().unwrap_or(0));
        let took = answer.started.elapsed();
        let series = client.metrics.series(&remote.name, &remote.series);
        client.metrics.hit(series, length, took);
        if let Some(log) = &client.log {
            log.push(writing.line.end(&access_log::Answered {
                remote: Some(&remote.name),
                status: 200,
                bytes: length,
                cache: "hit",
                took,
                upstream: None,
            }));
        }
        if let Err(error) = &sent {
            tracing::debug!(%error, remote = %remote.name, status = 200, "a response ended early");
        }
        sent
    }

    async fn refuse(
        &self,
        stream: &mut Transport,
        Refusal { status, reason }: Refusal,
        limit: Duration,
    ) -> io::Result<()> {
        let started = Instant::now();
        let body = serde_json::json!({"detail": reason, "remote": null, "path": null}).to_string();
        let phrase = StatusCode::from_u16(status)
            .ok()
            .and_then(|status| status.canonical_reason());
        let mut id = Vec::new();
        on_behalf::write_new(&mut id);
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nX-Request-Id: {}\r\n\
             Content-Length: {}\r\nDate: {}\r\nConnection: close\r\n\r\n",
            phrase.unwrap_or("Refused"),
            String::from_utf8_lossy(&id),
            body.len(),
            httpdate::fmt_http_date(SystemTime::now()),
        );
        write_all(stream, head.as_bytes(), body.as_bytes(), limit).await?;
        flush(stream, limit).await?;
        let took = started.elapsed();
        self.client.metrics.request(&Answered {
            remote: "",
            status,
            cache: "none",
            source: None,
            sent: 0,
            took,
        });
        if let Some(log) = &self.client.log {
            let mut line = Line::default();
            // Who it is for a proxy cannot be read either.
            let asked = Asked {
                id: &id,
                client: peer_of(stream),
                method: None,
                target: None,
                protocol: "HTTP/1.1",
                user_agent: None,
            };
            line.begin(&asked, took);
            log.push(line.end(&access_log::Answered {
                remote: None,
                status,
                bytes: body.len() as u64,
                cache: "none",
                took,
                upstream: None,
            }));
        }
        AsyncWriteExt::shutdown(stream).await
    }

    /// Pingora's turn, for the one request that the gate is open for. The connection comes back if it can be used again.
    async fn through_pingora(&self, gate: Box<Gate>, shutdown: &ShutdownWatch) -> Option<Box<Gate>> {
        let kept = gate.limits.idle_timeout.as_secs().max(1);
        let mut session = ServerSession::new_http1(gate);
        session.set_keepalive((!*shutdown.borrow()).then_some(kept));
        // The gate knows how long what may take.
        session.set_read_timeout(None);
        let (stream, _) = self.proxy.process_new_http(session, shutdown).await?.consume();
        let gate = stream.into_any().downcast::<Gate>().ok()?;
        gate.is_between_requests().then_some(gate)
    }
}

async fn send(stream: &mut Transport, head: &[u8], object: &Arc<Object>, limit: Duration) -> io::Result<()> {
    match (&object.body, &mut *stream) {
        (Body::Memory(body, Some(file)), Transport::Plain(stream)) => {
            send_pages(stream, head, (body, file), limit).await?;
        }
        (Body::Memory(body, _), stream) => write_all(stream, head, body, limit).await?,
        (Body::File { .. } | Body::Elsewhere(_), stream) => {
            let mut head = head;
            let mut reader = Reader::new(Arc::clone(object)).in_pieces_of(PIECE);
            while let Some(piece) = reader.next().await.map_err(io::Error::other)? {
                write_all(stream, head, &piece, limit).await?;
                head = &[];
            }
        }
    }
    flush(stream, limit).await
}

/// Sends what is still in the stream's buffer.
async fn flush(stream: &mut (impl AsyncWrite + Unpin), limit: Duration) -> io::Result<()> {
    match timeout(limit, stream.flush()).await {
        Ok(flushed) => flushed,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Lets the socket take a body's pages without a copy.
async fn send_pages(
    stream: &mut Tcp,
    mut head: &[u8],
    (body, file): (&[u8], &File),
    limit: Duration,
) -> io::Result<()> {
    let mut at = 0;
    loop {
        take_pages(stream, &mut head, file, &mut at, body.len());
        let left = body.get(at..).unwrap_or_default();
        if head.is_empty() && left.is_empty() {
            return Ok(());
        }
        // The socket is full, or has failed. Writing a little in the usual way waits for it, or says how.
        let little = &left[..left.len().min(PIECE as usize)];
        write_all(stream, head, little, limit).await?;
        flush(stream, limit).await?;
        (head, at) = (&[], at + little.len());
    }
}

/// Sends as much as the socket takes at once, and says how much was taken by moving `head` and `at` on. An error shows
/// again when it is written to in the usual way.
fn take_pages(stream: &Tcp, head: &mut &[u8], file: &File, at: &mut usize, length: usize) {
    // The stream holds back nothing that was written before: there was a flush.
    let socket = socket_of(stream);
    if !head.is_empty() {
        let sent = rustix::net::send(socket, head, SendFlags::MORE | SendFlags::NOSIGNAL).unwrap_or(0);
        *head = &head[sent..];
    }
    while head.is_empty() && *at < length {
        match rustix::fs::sendfile(socket, file, Some(&mut (*at as u64)), length - *at) {
            Ok(0) | Err(_) => return,
            Ok(sent) => *at += sent,
        }
    }
}

/// Writes both, in one system call where the socket takes them.
async fn write_all(
    stream: &mut (impl AsyncWrite + Unpin),
    head: &[u8],
    body: &[u8],
    limit: Duration,
) -> io::Result<()> {
    let (mut head, mut body) = (head, body);
    while !head.is_empty() || !body.is_empty() {
        let piece = &body[..body.len().min(writing::PIECE)];
        let slices = [IoSlice::new(head), IoSlice::new(piece)];
        let written = match timeout(limit, stream.write_vectored(&slices)).await {
            Ok(written) => written?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_head = written.min(head.len());
        head = &head[of_head..];
        body = &body[written - of_head..];
    }
    Ok(())
}

/// What is read of a plain request.
struct Plain<'a> {
    target: &'a [u8],
    host: Option<&'a str>,
    accept: Option<&'a str>,
    accepts_gzip: bool,
    id: Option<&'a str>,
    user_agent: Option<&'a [u8]>,
    /// A proxy says for whom it asks.
    is_forwarded: bool,
}

impl<'a> Plain<'a> {
    /// `None`: the request asks for more than a GET of a whole, or says it in more words than usual.
    fn read(request: &httparse::Request<'_, 'a>) -> Option<Self> {
        let target = request.path?;
        if request.method != Some("GET") || request.version != Some(1) || !target.starts_with('/') {
            return None;
        }
        let mut plain = Plain {
            target: target.as_bytes(),
            host: None,
            accept: None,
            accepts_gzip: false,
            id: None,
            user_agent: None,
            is_forwarded: false,
        };
        let mut codings = None;
        for field in request.headers.iter() {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            let once = |seen: &mut Option<&'a str>| {
                let value = std::str::from_utf8(field.value).ok()?;
                seen.replace(value).is_none().then_some(())
            };
            let refused = match field.name.len() {
                4 if is("host") => once(&mut plain.host).is_none(),
                6 if is("accept") => once(&mut plain.accept).is_none(),
                15 if is("accept-encoding") => once(&mut codings).is_none(),
                9 => {
                    plain.is_forwarded |= is("forwarded");
                    false
                }
                10 if is("user-agent") => {
                    plain.user_agent = Some(field.value);
                    false
                }
                12 if is("x-request-id") => once(&mut plain.id).is_none() || !on_behalf::is_sane(field.value),
                15 if is("x-forwarded-for") => {
                    plain.is_forwarded = true;
                    false
                }
                10 if is("connection") => !field.value.eq_ignore_ascii_case(b"keep-alive"),
                5 => is("range"),
                6 => is("expect"),
                7 => is("upgrade"),
                8 => is("if-match"),
                13 => is("if-none-match"),
                14 => is("content-length"),
                17 => is("if-modified-since") || is("transfer-encoding"),
                19 => is("if-unmodified-since"),
                _ => false,
            };
            if refused {
                return None;
            }
        }
        plain.host?;
        plain.accepts_gzip = codings.is_some_and(|codings| accepted([codings].into_iter(), "gzip"));
        Some(plain)
    }

    /// All fields, for who needs more of them.
    fn headers(&self, request: &httparse::Request<'_, 'a>) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(request.headers.len());
        for field in request.headers.iter() {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(field.name.as_bytes()),
                HeaderValue::from_bytes(field.value),
            ) {
                headers.append(name, value);
            }
        }
        headers
    }
}
