//! A request's body, read whole: within the limits that clients have, and within what all bodies may take together.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header;
use pingora_error::{Error, ErrorType, Result};
use pingora_proxy::Session;
use pingora_timeout::timeout;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::reply::Problem;
use crate::config::ClientSettings;

/// Memory for all bodies of one kind together, in kilobytes.
pub type Memory = Semaphore;

/// For what goes on to upstream.
pub static POSTS: Memory = Semaphore::const_new(64 << 10);
/// For flushes, which must not wait until there are fewer of the others.
pub static FLUSHES: Memory = Semaphore::const_new(8 << 10);
/// For lists of artifacts to be cached, lock files included.
pub static BULK: Memory = Semaphore::const_new(64 << 10);
/// For requests that have no body.
pub static UNASKED: Memory = Semaphore::const_new(0);

/// A body, and its part of the memory for all.
#[derive(Default)]
pub struct Body {
    pub bytes: Bytes,
    _memory: Option<SemaphorePermit<'static>>,
}

/// Reads a body of at most `longest` bytes, which takes its part of `all`. What is left of one that is refused would be read as another request: the
/// connection ends with the answer.
///
/// # Errors
/// The client is gone; `Ok(Err)`: what to tell it.
pub async fn read(
    session: &mut Session,
    longest: usize,
    all: &'static Memory,
    limits: &ClientSettings,
) -> Result<std::result::Result<Body, Problem>> {
    let body = collect(session, longest, all, limits).await;
    if !matches!(body, Ok(Ok(_))) {
        session.set_keepalive(None);
    }
    body
}

async fn collect(
    session: &mut Session,
    longest: usize,
    all: &'static Memory,
    limits: &ClientSettings,
) -> Result<std::result::Result<Body, Problem>> {
    let mut pieces = Pieces::new(limits);
    let mut bytes = BytesMut::new();
    let mut memory: Option<SemaphorePermit<'static>> = None;
    loop {
        let piece = match pieces.next(session).await? {
            Ok(piece) => piece,
            Err(problem) => return Ok(Err(problem)),
        };
        let Some(piece) = piece else {
            let bytes = bytes.freeze();
            return Ok(Ok(Body { bytes, _memory: memory }));
        };
        if bytes.len() + piece.len() > longest {
            let detail = format!("the body is longer than {longest} bytes");
            return Ok(Err(Problem::new(413, detail)));
        }
        // Of the whole: many short pieces take no more than one that is long.
        let kilobytes = (bytes.len() + piece.len()).div_ceil(1 << 10);
        let more = kilobytes - memory.as_ref().map_or(0, SemaphorePermit::num_permits);
        let Ok(more) = all.try_acquire_many(u32::try_from(more).unwrap_or(u32::MAX)) else {
            let detail = "too many bodies are on their way; try again";
            return Ok(Err(Problem::new(503, detail).header(header::RETRY_AFTER, "5")));
        };
        match &mut memory {
            Some(memory) => memory.merge(more),
            None => memory = Some(more),
        }
        bytes.extend_from_slice(&piece);
    }
}

/// A body as it comes, within the limits that clients have.
pub struct Pieces<'a> {
    limits: &'a ClientSettings,
    until: Instant,
    /// When the last piece was handed out: what is done with it does not count.
    since: Instant,
}

impl<'a> Pieces<'a> {
    /// The body of a request, of which nothing was read yet.
    pub fn new(limits: &'a ClientSettings) -> Self {
        let since = Instant::now();
        Pieces {
            limits,
            until: since + limits.body_timeout,
            since,
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The client is gone; `Ok(Err)`: what to tell it.
    pub async fn next(&mut self, session: &mut Session) -> Result<std::result::Result<Option<Bytes>, Problem>> {
        self.until += self.since.elapsed();
        let left = self.until.saturating_duration_since(Instant::now());
        let piece = match timeout(left, session.as_downstream_mut().read_request_body()).await {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => return problem(&error).map(Err).ok_or(error),
            Err(_) => return Ok(Err(too_slow())),
        };
        let arrived = piece.as_ref().map_or(0, Bytes::len);
        self.until = self.limits.body_until(self.until, arrived);
        self.since = Instant::now();
        Ok(Ok(piece))
    }
}

/// How much of a body that is not wanted is read all the same, and for how long.
const UNWANTED: usize = 64 << 20;
const UNWANTED_LIMIT: Duration = Duration::from_secs(20);
const UNWANTED_PAUSE: Duration = Duration::from_secs(2);

/// After an answer that came before the body had: the connection ends with it, and what the client sends until then is
/// read, or many would not see the answer (RFC 9112 section 9.6).
///
/// # Errors
/// The client is gone.
pub async fn pass_over(session: &mut Session) -> Result<()> {
    let downstream = session.as_downstream_mut();
    downstream.finish_body().await?;
    if downstream.is_http2() {
        return Ok(());
    }
    let (until, mut read) = (Instant::now() + UNWANTED_LIMIT, 0);
    while read < UNWANTED {
        let left = until.saturating_duration_since(Instant::now()).min(UNWANTED_PAUSE);
        match timeout(left, downstream.read_request_body()).await {
            Ok(Ok(Some(piece))) => read += piece.len(),
            _ => break,
        }
    }
    Ok(())
}

/// What a client is told whose body could not be read; `None`: it is gone.
pub fn problem(error: &Error) -> Option<Problem> {
    let cause = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    match (cause, error.etype()) {
        (Some(io::ErrorKind::InvalidData), _) => Some(Problem::new(400, "the body's chunks cannot be read")),
        (Some(io::ErrorKind::TimedOut), _) | (_, ErrorType::ReadTimedout) => Some(too_slow()),
        _ => None,
    }
}

fn too_slow() -> Problem {
    Problem::new(
        408,
        "the body came too slowly; see `clients.body_timeout` and `clients.body_rate`",
    )
}
