//! Between two nodes: one asks the other for what that one fills, or has, and reads it while it grows. The path is internal
//! and authenticated by `ARTIFACTAPI_NODE_SECRET`, which itself never goes over the wire.
//!
//! An answer is a sealed line of JSON ([`Reply`]) as soon as the other's flight is that far, then the body, if there is one.
//! A body that is cut is no end: the connection breaks, and the one who asked goes on elsewhere.
//!
//! A line is sealed by the secret together with its question, which names method, path, the node that is asked and a number
//! used once: who listens cannot give an old answer to a new question. The digest of a complete body stands in the reply; a
//! body that grows comes in frames, and a sealed line after the last one tells length and digest, before which it is not
//! whole.

mod answering;
mod message;
mod peers;
mod seal;
#[cfg(test)]
mod tests;

pub use message::{Life, Question, Reply};
pub use peers::Peers;
pub use seal::{Asked, Seal};

/// Where nodes answer one another.
pub const PATH: &str = "/-/node/object";
/// Of a body that grows; a longer piece is sent in several.
pub const MAX_FRAME: usize = 1 << 20;
