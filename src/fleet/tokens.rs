//! Upstream's tokens, shared for as long as they are good. Who can read Redis can read them.

use std::time::Duration;

use super::Fleet;
use super::connection::{Failure, LIMIT, PATIENT};
use super::names;
use super::outbox::Parcel;
use crate::cache::{Millis, now_ms};
use crate::config::Secret;

impl Fleet {
    /// A token that some node got from upstream, and how long it is still good. `None` also when Redis is away.
    pub async fn token(&self, name: &str) -> Option<(String, Duration)> {
        let name = names::token(name);
        let mut ask = redis::pipe();
        ask.cmd("GET").arg(&name);
        ask.cmd("PTTL").arg(&name);
        let asked = self.redis.ask(LIMIT, |mut connection| async move {
            ask.query_async::<(Option<String>, i64)>(&mut connection).await
        });
        let (token, left) = asked.await.ok()?;
        let left = u64::try_from(left).ok().filter(|left| *left > 0)?;
        Some((token?, Duration::from_millis(left)))
    }

    /// Shares a token for its remaining lifetime.
    pub fn keep_token(&self, name: &str, token: String, lifetime: Duration) {
        self.outbox.put(Parcel::Token {
            name: name.to_owned(),
            token: Secret::new(token),
            end: now_ms().saturating_add(lifetime.as_millis() as u64),
        });
    }

    pub(super) async fn send_token(&self, name: &str, token: &Secret, end: Millis) -> Result<(), Failure> {
        let left = end.saturating_sub(now_ms());
        if left == 0 {
            return Ok(());
        }
        let mut set = redis::cmd("SET");
        set.arg(names::token(name)).arg(token.reveal()).arg("PX").arg(left);
        let set = |mut connection| async move { set.query_async::<()>(&mut connection).await };
        self.redis.ask(PATIENT, set).await
    }
}
