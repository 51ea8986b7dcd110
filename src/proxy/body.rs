//! A request's body, read whole.

use std::io;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use pingora_error::{Error, ErrorType, Result};
use pingora_proxy::Session;
use pingora_timeout::timeout;

use super::reply::Problem;
use crate::config::ClientSettings;

/// Reads a body of at most `longest` bytes, within the limits that clients have.
///
/// # Errors
/// The client is gone. `Ok(Err)`: what to tell it, and then to close the connection.
pub async fn read(
    session: &mut Session,
    longest: usize,
    limits: &ClientSettings,
) -> Result<std::result::Result<Bytes, Problem>> {
    let began = Instant::now();
    let mut all = BytesMut::new();
    loop {
        let left = limits.body_left(began, all.len() as u64);
        let piece = match timeout(left, session.as_downstream_mut().read_request_body()).await {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => return problem(&error).map(Err).ok_or(error),
            Err(_) => return Ok(Err(too_slow())),
        };
        let Some(piece) = piece else { return Ok(Ok(all.freeze())) };
        if all.len() + piece.len() > longest {
            let detail = format!("the body is longer than {longest} bytes");
            return Ok(Err(Problem::new(413, detail)));
        }
        all.extend_from_slice(&piece);
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
    Problem::new(408, "the body came too slowly; see `clients.body_timeout` and `clients.body_rate`")
}
