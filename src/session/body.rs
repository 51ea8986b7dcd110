//! A request's body, read whole: within the limits that clients have, and within what all bodies may take together.

use std::io;
use std::time::Instant;

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
    let mut until = Instant::now() + limits.body_timeout;
    let mut bytes = BytesMut::new();
    let mut memory: Option<SemaphorePermit<'static>> = None;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let piece = match timeout(left, session.as_downstream_mut().read_request_body()).await {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => return problem(&error).map(Err).ok_or(error),
            Err(_) => return Ok(Err(too_slow())),
        };
        let Some(piece) = piece else {
            let bytes = bytes.freeze();
            return Ok(Ok(Body { bytes, _memory: memory }));
        };
        if bytes.len() + piece.len() > longest {
            let detail = format!("the body is longer than {longest} bytes");
            return Ok(Err(Problem::new(413, detail)));
        }
        until = limits.body_until(until, piece.len());
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
