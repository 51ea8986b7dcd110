//! The body of a request that goes on to upstream: read whole, within a time and within what all of them may take together.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header;
use pingora_error::Result;
use pingora_proxy::Session;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::reply::Problem;

/// The longest that is taken: what npm's clients send is a list of packages.
const MAX_BODY: usize = 16 << 20;
/// From its first byte to its last.
const TIME: Duration = Duration::from_secs(120);
/// Memory for all bodies together, in kilobytes.
static MEMORY: Semaphore = Semaphore::const_new(64 << 10);

/// A body, and its part of the memory for all.
pub struct Body {
    pub bytes: Bytes,
    _memory: Option<SemaphorePermit<'static>>,
}

/// Reads the body of a request; a refusal if it is too long, takes too long, or there is no room.
///
/// # Errors
/// The client is gone.
pub async fn read(session: &mut Session) -> Result<std::result::Result<Body, Problem>> {
    if session.req_header().headers.contains_key(header::EXPECT) {
        session.as_downstream_mut().write_continue_response().await?;
    }
    let problem = |status, detail: String| Ok(Err(Problem::new(status, detail)));
    match timeout(TIME, collect(session)).await {
        Ok(Ok(Some(body))) => Ok(Ok(body)),
        Ok(Ok(None)) => Ok(Err(
            Problem::new(503, "too many bodies are on their way; try again").header(header::RETRY_AFTER, "5")
        )),
        Ok(Err(Some(error))) => Err(error),
        Ok(Err(None)) => problem(413, format!("the body is longer than {MAX_BODY} bytes")),
        Err(_) => problem(408, format!("the body did not arrive within {} s", TIME.as_secs())),
    }
}

/// `Ok(None)`: there is no room; `Err(None)`: it is too long.
async fn collect(session: &mut Session) -> std::result::Result<Option<Body>, Option<pingora_error::BError>> {
    let mut bytes = BytesMut::new();
    let mut memory: Option<SemaphorePermit<'static>> = None;
    while let Some(piece) = session.as_downstream_mut().read_request_body().await.map_err(Some)? {
        if bytes.len() + piece.len() > MAX_BODY {
            return Err(None);
        }
        let kilobytes = u32::try_from(piece.len().div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let Ok(more) = MEMORY.try_acquire_many(kilobytes) else {
            return Ok(None);
        };
        match &mut memory {
            Some(memory) => memory.merge(more),
            None => memory = Some(more),
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(Body {
        bytes: bytes.freeze(),
        _memory: memory,
    }))
}
