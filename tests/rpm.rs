//! x
mod common;
#[test]
fn t() {}
