//! Hosts that do not answer: nobody asks them any more, so that nobody waits for them, until a probe finds that they do.
//!
//! A host is away once so many questions in a row had no answer. Any answer, an error's too, shows that it is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use parking_lot::Mutex;
use tokio::sync::watch;
use url::Url;

use super::Upstream;
use super::exchange::{Ask, Exchange};
use super::failure::Failure;
use crate::config::Remote;

/// So many questions in a row without an answer, and a host counts as away.
const ENOUGH: u32 = 3;
/// Hosts that something is known of; of further ones nothing is.
const MOST: usize = 1024;
/// The pauses between probes grow from the first to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];
/// A host that nobody has asked for so long is not probed any more.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Who has nothing stored waits so long for a host that is away to come back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which host, and by which way: scheme, host and port, and the outbound proxy.
pub(super) type Way = Arc<str>;

/// A host that is away, for people.
#[derive(Debug, Clone)]
pub struct Away {
    pub way: String,
    /// What the last question came to.
    pub why: String,
    pub since: Duration,
}

/// What is known of hosts that did not answer.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// Hosts in the table: mostly none, and then there is no need to look.
    known: AtomicUsize,
    table: Mutex<HashMap<Way, Host>>,
}

#[derive(Debug, Default)]
struct Host {
    unanswered: u32,
    away: Option<Gone>,
}

#[derive(Debug)]
struct Gone {
    failure: Failure,
    since: Instant,
    asked: Instant,
    /// Closed when the host is back.
    back: watch::Sender<()>,
}

impl Hosts {
    /// The host has answered.
    pub(super) fn answered(&self, way: &Way) {
        if self.known.load(Relaxed) == 0 {
            return;
        }
        let mut table = self.table.lock();
        let before = table.remove(way);
        self.known.store(table.len(), Relaxed);
        if let Some(Gone { since, .. }) = before.and_then(|host| host.away) {
            tracing::info!(host = %way, seconds = since.elapsed().as_secs(), "an upstream host answers again");
        }
    }

    /// A question had no answer. Whether the host counts as away from now on, and did not before.
    fn unanswered(&self, way: &Way, failure: &Failure) -> bool {
        let mut table = self.table.lock();
        if table.len() >= MOST && !table.contains_key(way) {
            // Those that are away are probed; of the others nobody may ask again.
            table.retain(|_, host| host.away.is_some());
            if table.len() >= MOST {
                return false;
            }
        }
        let host = table.entry(Arc::clone(way)).or_default();
        host.unanswered += 1;
        let is_news = host.unanswered >= ENOUGH && host.away.is_none();
        if is_news {
            tracing::warn!(host = %way, why = %failure.reason, "an upstream host does not answer; it is not asked until it does");
            host.away = Some(Gone {
                failure: failure.clone(),
                since: Instant::now(),
                asked: Instant::now(),
                back: watch::channel(()).0,
            });
        } else if let Some(gone) = &mut host.away {
            gone.failure = failure.clone();
        }
        self.known.store(table.len(), Relaxed);
        is_news
    }

    /// Returns when the host may be asked.
    ///
    /// # Errors
    /// The host is away, and stayed so: for some time, or no matter how long where `is_stored`.
    pub(super) async fn may_ask(&self, way: &Way, is_stored: bool) -> Result<(), Failure> {
        let Some((mut back, failure)) = self.gone(way) else {
            return Ok(());
        };
        // The sender is dropped when the host answers.
        let is_back = !is_stored && tokio::time::timeout(PATIENCE, back.changed()).await.is_ok();
        if is_back {
            return Ok(());
        }
        Err(Failure {
            reason: format!(
                "{}; it has not answered for some time and is asked again by itself, every {} s at least",
                failure.reason,
                PAUSES[1].as_secs()
            ),
            ..failure
        })
    }

    fn gone(&self, way: &Way) -> Option<(watch::Receiver<()>, Failure)> {
        if self.known.load(Relaxed) == 0 {
            return None;
        }
        let mut table = self.table.lock();
        let gone = table.get_mut(way)?.away.as_mut()?;
        gone.asked = Instant::now();
        Some((gone.back.subscribe(), gone.failure.clone()))
    }

    /// Whether there is still reason to find out if the host is back.
    fn is_wanted(&self, way: &Way) -> bool {
        let mut table = self.table.lock();
        let Some(gone) = table.get(way).and_then(|host| host.away.as_ref()) else {
            return false;
        };
        let is_forgotten = gone.asked.elapsed() >= FORGOTTEN;
        if is_forgotten {
            table.remove(way);
            self.known.store(table.len(), Relaxed);
        }
        !is_forgotten
    }

    fn away(&self) -> Vec<Away> {
        let table = self.table.lock();
        let mut away: Vec<Away> = table
            .iter()
            .filter_map(|(way, host)| {
                let gone = host.away.as_ref()?;
                Some(Away {
                    way: way.to_string(),
                    why: gone.failure.reason.clone(),
                    since: gone.since.elapsed(),
                })
            })
            .collect();
        away.sort_by(|one, other| one.way.cmp(&other.way));
        away
    }
}

impl Upstream {
    /// The hosts that are away, by name.
    pub fn away(&self) -> Vec<Away> {
        self.hosts.away()
    }

    /// How `remote` comes to the host of `url`.
    pub(super) fn way(&self, remote: &Remote, url: &Url) -> Way {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        let by = self.proxy_for(remote, url);
        let by = by.map_or(String::new(), |proxy| format!(" by {}:{}", proxy.host, proxy.port));
        Arc::from(format!("{}://{host}:{port}{by}", url.scheme()))
    }

    /// A question to the host of `url` had no answer.
    pub(super) fn unanswered(self: &Arc<Self>, way: &Way, remote: &Arc<Remote>, url: &Url, failure: &Failure) {
        if self.hosts.unanswered(way, failure) {
            tokio::spawn(probe(
                Arc::clone(self),
                Arc::clone(way),
                Arc::clone(remote),
                root(remote, url),
            ));
        }
    }
}

/// What a host is asked for that may be back: where the remote begins there, else its root. The path that had no answer may
/// be one that the host takes too long for.
fn root(remote: &Remote, url: &Url) -> Url {
    let mut root = url.clone();
    root.set_path("/");
    root.set_query(None);
    let own = remote.urls().find(|own| own.origin() == url.origin());
    own.cloned().unwrap_or(root)
}

/// Asks until there is an answer, or nobody wants one.
async fn probe(upstream: Arc<Upstream>, way: Way, remote: Arc<Remote>, url: Url) {
    let mut pause = PAUSES[0];
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES[1]);
        if !upstream.hosts.is_wanted(&way) {
            return;
        }
        let ask = Ask {
            method: Method::HEAD,
            accept: None,
            gzip: false,
            headers: Vec::new(),
            total: None,
            conditional: false,
        };
        let exchange = Exchange::new(Arc::clone(&upstream), Arc::clone(&remote), url.clone(), ask).probing();
        // That there was an answer is noted when its header is read.
        if let Ok(answering) = exchange.ask_directly(&Bytes::new()).await {
            answering.end().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn failure() -> Failure {
        Failure {
            status: 504,
            reason: "no answer".to_owned(),
            unreachable: true,
        }
    }

    #[test]
    fn a_host_is_away_after_so_many_questions_in_a_row_without_an_answer() {
        let (hosts, way, other): (_, Way, Way) = (Hosts::default(), "http://a:80".into(), "http://b:80".into());
        for _ in 0..2 {
            for _ in 1..ENOUGH {
                assert!(!hosts.unanswered(&way, &failure()));
                assert_eq!(hosts.may_ask(&way, true).now_or_never(), Some(Ok(())));
            }
            hosts.answered(&way);
        }
        for nth in 1..=ENOUGH + 1 {
            assert_eq!(hosts.unanswered(&way, &failure()), nth == ENOUGH);
        }
        assert_eq!(
            hosts.may_ask(&way, true).now_or_never().map(|may| may.is_ok()),
            Some(false)
        );
        assert_eq!(hosts.may_ask(&other, true).now_or_never(), Some(Ok(())));
        assert_eq!(hosts.away().len(), 1);
        hosts.answered(&way);
        assert_eq!(hosts.may_ask(&way, true).now_or_never(), Some(Ok(())));
        assert!(hosts.away().is_empty() && hosts.table.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_nothing_stored_waits_a_little_for_it_to_come_back() {
        let (hosts, way): (_, Way) = (Hosts::default(), "http://a:80".into());
        for _ in 0..ENOUGH {
            hosts.unanswered(&way, &failure());
        }
        let refused = hosts.may_ask(&way, false).await;
        assert!(refused.is_err_and(|failure| failure.status == 504 && failure.unreachable));
        let mut waiting = Box::pin(hosts.may_ask(&way, false));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        hosts.answered(&way);
        assert_eq!(waiting.await, Ok(()));
    }

    #[test]
    fn no_more_hosts_are_known_than_may_be() {
        let hosts = Hosts::default();
        for host in 0..2 * MOST {
            let way: Way = format!("http://{host}:80").into();
            for _ in 0..1 + host % 4 {
                hosts.unanswered(&way, &failure());
            }
        }
        assert!(hosts.table.lock().len() <= MOST);
    }
}
