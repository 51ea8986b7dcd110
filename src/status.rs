//! What upstream's status codes mean here, where more than one place asks.

/// Whether upstream says that there is no such thing, or none for anybody (RFC 9110 sections 15.5.5 and 15.5.11, RFC 7725
/// section 3). Such an answer is remembered, and takes what was stored with it.
pub fn is_absent(status: u16) -> bool {
    matches!(status, 404 | 410 | 451)
}

/// Whether a server may have refused the method HEAD and nothing else, so that a GET is worth asking. A signed URL is often
/// good for GET only, and says 403.
pub fn may_refuse_head(status: u16) -> bool {
    matches!(status, 400 | 403 | 405 | 501)
}
