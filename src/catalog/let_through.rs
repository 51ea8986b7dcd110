//! What people let through though a remote holds it back, and why: kept for those who ask later.

/// Most artifacts that are let through one by one: more than that is another policy.
pub const MOST_LET_THROUGH: usize = 10_000;

/// An artifact that somebody lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetThrough {
    pub remote: String,
    /// Percent-encoded in its normal form, without leading slash, with `?query` where there is one.
    pub path: String,
    pub reason: String,
    /// The address of who did it.
    pub by: String,
    /// In Unix seconds.
    pub at: i64,
}
