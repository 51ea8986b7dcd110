//! A client's session, as `api` and `proxy` both need it: how the request came here, its body, and what is written in answer.

pub mod body;
pub mod public;
pub mod reply;
pub mod unread;
pub mod writing;
