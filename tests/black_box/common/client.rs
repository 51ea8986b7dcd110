//! A raw HTTP/1.1 client: one connection, requests written as given, bodies read as far as the test wants.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::pattern::Pattern;
use super::upstream::find;

/// How long anything may keep a client waiting before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// The header of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    /// Names in lower case, in order, repeated ones repeated.
    pub headers: Vec<(String, String)>,
}

/// An answer, as far as it came.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// Whether the body ended as its framing promised.
    pub complete: bool,
    pub trailers: Vec<(String, String)>,
}

/// Access to headers by name.
pub trait Headers {
    fn all(&self) -> &[(String, String)];

    fn header(&self, name: &str) -> Option<&str> {
        self.all()
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    fn headers_named(&self, name: &str) -> Vec<&str> {
        self.all()
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
            .collect()
    }

    /// A header that must be there, once.
    #[track_caller]
    fn must(&self, name: &str) -> &str {
        match self.headers_named(name).as_slice() {
            [value] => value,
            other => panic!("{name} is there {} times: {:?}", other.len(), self.all()),
        }
    }

    fn source(&self) -> &str {
        self.header("x-artifact-source").unwrap_or("(no X-Artifact-Source)")
    }

    fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or("(no Cache-Status)")
    }

    /// The parameters of this program's entry in `Cache-Status`, `ttl=…` with its number cut off.
    fn cache_words(&self) -> Vec<String> {
        let mut words = self
            .cache_status()
            .split(';')
            .map(|word| word.trim().to_owned())
            .collect::<Vec<_>>();
        if words.first().map(String::as_str) != Some("artifactapi") {
            return vec![format!("not ours: {:?}", words)];
        }
        words.remove(0);
        words
            .iter()
            .map(|word| {
                if word.starts_with("ttl=") {
                    "ttl".to_owned()
                } else {
                    word.clone()
                }
            })
            .collect()
    }
}

impl Headers for Head {
    fn all(&self) -> &[(String, String)] {
        &self.headers
    }
}

impl Headers for Response {
    fn all(&self) -> &[(String, String)] {
        &self.headers
    }
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// Fails unless this is a whole 200.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect(200)
    }

    /// Fails unless this is a whole answer of `status`.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status,
            status,
            "headers {:?}, body {}",
            self.headers,
            self.excerpt()
        );
        assert!(
            self.complete,
            "the body ended early after {} bytes: {:?}",
            self.body.len(),
            self.headers
        );
        self
    }

    /// Fails unless the bytes are these and came from `source`.
    #[track_caller]
    pub fn is(self, source: &str, body: impl AsRef<[u8]>) -> Self {
        let answer = self.ok();
        assert_eq!(answer.source(), source, "{:?}", answer.headers);
        assert!(
            answer.body == body.as_ref(),
            "not the expected bytes, but {}",
            answer.excerpt()
        );
        answer
    }

    fn excerpt(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(600)]).into_owned()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Length(u64),
    Chunked,
    UntilClose,
    Done,
}

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    rest: Rest,
    trailers: Vec<(String, String)>,
    complete: bool,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        Self::try_open(address)
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub async fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            rest: Rest::Done,
            trailers: Vec::new(),
            complete: false,
        })
    }

    /// A connection from this address of the machine.
    pub async fn open_from(from: std::net::IpAddr, address: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(from, 0)).expect("its address");
        let stream = socket.connect(address).await.expect("a connection");
        Self {
            stream,
            buffer: Vec::new(),
            rest: Rest::Done,
            trailers: Vec::new(),
            complete: false,
        }
    }

    /// A connection whose receive buffer is small, so that not reading is soon felt at the other end.
    pub async fn open_narrow(address: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(16 * 1024).expect("a small buffer");
        let stream = socket.connect(address).await.expect("a connection");
        Self {
            stream,
            buffer: Vec::new(),
            rest: Rest::Done,
            trailers: Vec::new(),
            complete: false,
        }
    }

    /// Writes these bytes and nothing else.
    pub async fn write_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("written");
    }

    /// Writes these bytes until the other side takes no more.
    pub async fn send_as_far_as_taken(&mut self, bytes: &[u8]) {
        let _ = tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await;
    }

    /// Closes the sending side only.
    pub async fn finish_sending(&mut self) {
        self.stream.shutdown().await.expect("half closed");
    }

    /// Sends a request; `Host` is added when it is not given, `Content-Length` when there is a body.
    pub async fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) {
        let named = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !named("host") {
            let address = self.stream.peer_addr().expect("the other side");
            head.push_str(&format!("Host: {address}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() && !named("content-length") && !named("transfer-encoding") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        // A server may refuse and close before it has read everything.
        let _ = self.stream.write_all(&bytes).await;
    }

    /// Reads the header of the final answer to a request with this method.
    pub async fn read_head(&mut self, method: &str) -> Head {
        self.try_read_head(method)
            .await
            .unwrap_or_else(|error| panic!("no answer to {method}: {error}"))
    }

    pub async fn try_read_head(&mut self, method: &str) -> io::Result<Head> {
        loop {
            let end = loop {
                if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                    break at;
                }
                self.fill().await?;
            };
            let text = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
            self.buffer.drain(..end + 4);
            let mut rows = text.split("\r\n");
            let status_line = rows.next().unwrap_or_default().to_owned();
            let mut words = status_line.splitn(3, ' ');
            let status = words.nth(1).and_then(|status| status.parse::<u16>().ok());
            let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {status_line:?}")))?;
            if (100..200).contains(&status) {
                continue;
            }
            let headers = rows
                .map(|row| {
                    row.split_once(':')
                        .ok_or_else(|| io::Error::other(format!("not a header: {row:?}")))
                })
                .map(|row| row.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())))
                .collect::<io::Result<Vec<_>>>()?;
            let head = Head { status, headers };
            self.rest = framing(method, &head)?;
            self.trailers.clear();
            self.complete = self.rest == Rest::Done;
            return Ok(head);
        }
    }

    /// The next piece of the body; `None` at its end, whether that is the promised one or not (`is_complete`).
    pub async fn read_body_chunk(&mut self) -> Option<Bytes> {
        match self.rest {
            Rest::Done => None,
            Rest::Length(0) => {
                self.finish(true);
                None
            }
            Rest::Length(left) => {
                if self.buffer.is_empty() && self.fill().await.is_err() {
                    self.finish(false);
                    return None;
                }
                let now = (self.buffer.len() as u64).min(left);
                self.rest = Rest::Length(left - now);
                Some(self.take(now as usize))
            }
            Rest::UntilClose => {
                if self.buffer.is_empty()
                    && let Err(error) = self.fill().await
                {
                    self.finish(error.kind() == io::ErrorKind::UnexpectedEof);
                    return None;
                }
                Some(self.take(self.buffer.len()))
            }
            Rest::Chunked => match self.read_chunk().await {
                Ok(Some(chunk)) => Some(chunk),
                end => {
                    self.finish(end.is_ok());
                    None
                }
            },
        }
    }

    /// Whether the last body ended as its framing promised.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Reads the rest of the body into memory.
    pub async fn read_body(&mut self) -> Bytes {
        let mut body = Vec::new();
        while let Some(chunk) = self.read_body_chunk().await {
            body.extend_from_slice(&chunk);
        }
        body.into()
    }

    /// Reads until this much of the body has come.
    pub async fn read_body_until(&mut self, length: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while body.len() < length {
            match self.read_body_chunk().await {
                Some(chunk) => body.extend_from_slice(&chunk),
                None => panic!("the body ended after {} of {length} bytes", body.len()),
            }
        }
        body
    }

    /// Reads the whole body and compares it on the way, without holding it; says how many bytes came.
    pub async fn read_pattern(&mut self, pattern: Pattern) -> u64 {
        let mut offset = 0;
        while let Some(chunk) = self.read_body_chunk().await {
            assert!(pattern.matches(offset, &chunk), "wrong bytes at {offset}");
            offset += chunk.len() as u64;
        }
        offset
    }

    pub async fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.send(method, target, headers, body).await;
        self.response(method).await
    }

    pub async fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], b"").await
    }

    /// Reads a whole answer.
    pub async fn response(&mut self, method: &str) -> Response {
        let head = self.read_head(method).await;
        let body = self.read_body().await;
        Response {
            status: head.status,
            headers: head.headers,
            body,
            complete: self.complete,
            trailers: std::mem::take(&mut self.trailers),
        }
    }

    /// Fills `into` with raw bytes; says whether they all came.
    pub async fn read_exact_raw(&mut self, into: &mut [u8]) -> bool {
        while self.buffer.len() < into.len() {
            if self.fill().await.is_err() {
                return false;
            }
        }
        let length = into.len();
        into.copy_from_slice(&self.buffer[..length]);
        self.buffer.drain(..length);
        true
    }

    /// Whether the other side closes the connection without sending anything more.
    pub async fn closes(&mut self) -> bool {
        self.buffer.is_empty() && matches!(self.fill().await, Err(error) if error.kind() != io::ErrorKind::TimedOut)
    }

    /// Drops the connection with a reset.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }

    fn finish(&mut self, complete: bool) {
        self.rest = Rest::Done;
        self.complete = complete;
    }

    fn take(&mut self, length: usize) -> Bytes {
        if length == self.buffer.len() {
            return std::mem::take(&mut self.buffer).into();
        }
        self.buffer.drain(..length).collect::<Vec<_>>().into()
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.reserve(64 * 1024);
        match tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await {
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read.map(|_| ()),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..at]).into_owned();
                self.buffer.drain(..at + 2);
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    async fn read_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
            .map_err(|_| io::Error::other(format!("not a chunk size: {line:?}")))?;
        if size == 0 {
            loop {
                let line = self.line().await?;
                match line.split_once(':') {
                    Some((name, value)) => {
                        self.trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                    }
                    None => return Ok(None),
                }
            }
        }
        while self.buffer.len() < size + 2 {
            self.fill().await?;
        }
        let chunk = self.buffer[..size].to_vec();
        self.buffer.drain(..size + 2);
        Ok(Some(chunk.into()))
    }
}

/// What follows a header, by RFC 9112; what it forbids is an error here.
fn framing(method: &str, head: &Head) -> io::Result<Rest> {
    let lengths = head.headers_named("content-length");
    let codings = head.headers_named("transfer-encoding");
    if lengths.len() > 1 || (!lengths.is_empty() && !codings.is_empty()) {
        return Err(io::Error::other(format!("ambiguous framing: {:?}", head.headers)));
    }
    if method == "HEAD" || head.status == 204 || head.status == 304 {
        return Ok(Rest::Done);
    }
    if let Some(coding) = codings.first() {
        assert!(coding.eq_ignore_ascii_case("chunked"), "transfer-encoding {coding}");
        return Ok(Rest::Chunked);
    }
    match lengths.first() {
        Some(length) => length
            .parse()
            .map(Rest::Length)
            .map_err(|_| io::Error::other(format!("length {length:?}"))),
        None => Ok(Rest::UntilClose),
    }
}

/// One GET on its own connection.
pub async fn get(address: SocketAddr, target: &str) -> Response {
    get_with(address, target, &[]).await
}

pub async fn get_with(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Response {
    Connection::open(address)
        .await
        .request("GET", target, headers, b"")
        .await
}

pub async fn head(address: SocketAddr, target: &str) -> Response {
    Connection::open(address).await.request("HEAD", target, &[], b"").await
}

/// One part of a `multipart/byteranges` body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Headers for Part {
    fn all(&self) -> &[(String, String)] {
        &self.headers
    }
}

/// Takes a `multipart/byteranges` answer apart, strictly by RFC 2046.
#[track_caller]
pub fn parts(response: &Response) -> Vec<Part> {
    let kind = response.must("content-type");
    let boundary = kind
        .strip_prefix("multipart/byteranges")
        .and_then(|rest| rest.split_once("boundary="));
    let boundary = boundary
        .unwrap_or_else(|| panic!("not multipart/byteranges: {kind}"))
        .1
        .trim_matches('"');
    let mut rest = &response.body[..];
    if rest.starts_with(b"\r\n") {
        rest = &rest[2..];
    }
    let first = format!("--{boundary}\r\n");
    rest = rest.strip_prefix(first.as_bytes()).expect("the first boundary");
    let delimiter = format!("\r\n--{boundary}");
    let mut parts = Vec::new();
    loop {
        let end = find(rest, delimiter.as_bytes()).expect("the next boundary");
        let part = &rest[..end];
        let split = find(part, b"\r\n\r\n").expect("a header in each part");
        let headers = String::from_utf8_lossy(&part[..split])
            .split("\r\n")
            .filter_map(|row| row.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        parts.push(Part {
            headers,
            body: Bytes::copy_from_slice(&part[split + 4..]),
        });
        rest = &rest[end + delimiter.len()..];
        if rest.starts_with(b"--") {
            return parts;
        }
        rest = rest.strip_prefix(b"\r\n").expect("a line end after the boundary");
    }
}
