//! Docker registry token authentication (<https://distribution.github.io/distribution/spec/auth/token/>): a registry
//! answers 401 and names a token service; what that gives is sent along until it is about to expire.
//!
//! A token belongs to a remote and a scope, and is asked for once however many fetches wait for it.

mod answer;
mod asker;
mod greeting;
mod service;
mod shared;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::HeaderValue;
use quick_cache::sync::Cache;
use tokio::sync::Mutex;
use url::Url;

use super::challenge::Challenge;
use super::failure::Failure;
use super::password::Basic;
use crate::config::Remote;
use answer::Life;
pub(super) use asker::{Answer, Asker};
pub use shared::SharedTokens;

/// Scopes whose tokens are kept.
const REMEMBERED: usize = 4096;

/// What opens a scope of a remote.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    /// `Authorization`.
    pub header: HeaderValue,
    /// This grant was made for this very question: upstream will not think better of another.
    pub fresh: bool,
    /// What it was got by.
    pub challenge: Challenge,
    id: u64,
}

#[cfg(test)]
impl Grant {
    pub(super) fn of(challenge: Challenge, fresh: bool) -> Self {
        Grant {
            header: HeaderValue::from_static("Bearer token"),
            fresh,
            challenge,
            id: 0,
        }
    }
}

/// What is known of one scope.
#[derive(Debug, Default)]
struct Known {
    /// What upstream wanted to see, if it could be satisfied last: whoever fails asks upstream anew what that is, since it
    /// may have changed, or have been somebody else's answer.
    challenge: Option<Challenge>,
    grant: Option<Grant>,
    /// How long the grant is good; `None`: until it is refused.
    life: Option<Life>,
    /// The last try, if it failed: for those who waited for it.
    failed: Option<(Instant, Failure)>,
    /// The last that upstream refused: other nodes may not know yet.
    refused: Option<HeaderValue>,
}

/// What was made for a scope.
struct Made {
    header: HeaderValue,
    /// `None`: until it is refused.
    life: Option<Life>,
    /// See [`Grant::fresh`].
    fresh: bool,
}

/// What a registry wants of everybody, by its answer to the question for its version, and when that was asked.
type Greeting = Option<(Instant, Result<Option<Challenge>, Failure>)>;

/// All tokens.
pub(super) struct Tokens {
    known: Cache<String, Arc<Mutex<Known>>>,
    /// By remote: what to begin with.
    greetings: Cache<String, Arc<Mutex<Greeting>>>,
    /// Remote and host of services that were told no credentials, said once.
    distrusted: Cache<String, ()>,
    ids: AtomicU64,
    hasher: RandomState,
    shared: OnceLock<Arc<dyn SharedTokens>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Tokens {
            known: Cache::new(REMEMBERED),
            greetings: Cache::new(1024),
            distrusted: Cache::new(1024),
            ids: AtomicU64::new(0),
            hasher: RandomState::new(),
            shared: OnceLock::new(),
        }
    }
}

impl Tokens {
    /// Shares tokens with other nodes. Only the first call counts.
    pub(super) fn share(&self, shared: Arc<dyn SharedTokens>) {
        let _ = self.shared.set(shared);
    }

    /// Other credentials after a reload are other tokens.
    fn key(&self, remote: &Remote, scope: &str) -> String {
        let credentials = remote.credentials.as_ref();
        let who = credentials.map(|credentials| (&credentials.username, &credentials.password));
        let base = remote.base_url.as_ref().map(Url::as_str);
        let print = self
            .hasher
            .hash_one((who, base, remote.own.token_realms(), remote.credentials_within));
        format!("{} {print:016x} {scope}", remote.name)
    }

    /// What opened `scope` before, renewed where it is about to expire. Where nothing is known, what the registry wants of
    /// everybody is seen to first, if the remote has credentials: some answer strangers as if there were nothing. `None`: it
    /// is not known whether anything is wanted.
    ///
    /// # Errors
    /// The token service failed, or refuses.
    pub(super) async fn known(
        &self,
        upstream: &dyn Asker,
        remote: &Arc<Remote>,
        scope: &str,
    ) -> Result<Option<Grant>, Failure> {
        if let Some(grant) = self.kept(upstream, remote, scope).await? {
            return Ok(Some(grant));
        }
        let Some(challenge) = self.wanted_of_everybody(upstream, remote).await? else {
            return Ok(None);
        };
        let granted = self.grant(upstream, remote, scope, &challenge, None).await;
        if granted.is_err() {
            self.greetings.remove(&self.key(remote, ""));
        }
        granted.map(Some)
    }

    /// What is known of `scope` itself.
    async fn kept(&self, upstream: &dyn Asker, remote: &Arc<Remote>, scope: &str) -> Result<Option<Grant>, Failure> {
        let Some(slot) = self.known.get(&self.key(remote, scope)) else {
            return Ok(None);
        };
        let waiting_since = Instant::now();
        let mut known = slot.lock().await;
        if let Some(grant) = known.fresh() {
            return Ok(Some(grant));
        }
        if let Some(challenge) = known.challenge.clone() {
            let renewed = self.renew(upstream, remote, scope, &challenge, false, &mut known);
            return renewed.await.map(Some);
        }
        match (known.usable(), known.failure_since(waiting_since)) {
            (None, Some(failure)) => Err(failure),
            (usable, _) => Ok(usable),
        }
    }

    /// What satisfies `challenge`, with which upstream answered a question that `refused` went along with.
    ///
    /// # Errors
    /// The token service failed, or refuses; or upstream wants credentials that the remote does not have.
    pub(super) async fn grant(
        &self,
        upstream: &dyn Asker,
        remote: &Arc<Remote>,
        scope: &str,
        challenge: &Challenge,
        refused: Option<&Grant>,
    ) -> Result<Grant, Failure> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(slot) = self.known.get_or_insert_with(&self.key(remote, scope), fresh);
        let waiting_since = Instant::now();
        let mut known = slot.lock().await;
        let newer = |known: &Grant| refused.is_none_or(|refused| refused.id != known.id);
        if known.grant.as_ref().is_some_and(newer) {
            if let Some(grant) = known.fresh() {
                return Ok(grant);
            }
        } else {
            // Whether there will be another or not, this one is good for nobody.
            if let Some(refused) = known.grant.take() {
                known.refused = Some(refused.header);
            }
        }
        if let Some(failure) = known.failure_since(waiting_since) {
            return known.usable().ok_or(failure);
        }
        let refused = refused.is_some() && known.grant.is_none();
        self.renew(upstream, remote, scope, challenge, refused, &mut known)
            .await
    }

    /// Forgets what upstream `refused`, and what it was got by: nothing is to be sent along to `scope` any more.
    pub(super) async fn forget(&self, remote: &Remote, scope: &str, refused: Option<&Grant>) {
        let Some(slot) = self.known.get(&self.key(remote, scope)) else {
            return;
        };
        let mut known = slot.lock().await;
        let is_newer = known
            .grant
            .as_ref()
            .is_some_and(|known| refused.is_none_or(|refused| refused.id != known.id));
        if !is_newer {
            known.challenge = None;
            known.refused = known
                .grant
                .take()
                .map(|refused| refused.header)
                .or(known.refused.take());
        }
    }

    /// Another grant than the one that is known, which stays until the other is there, and to its end if none comes.
    /// `refused`: upstream has refused what the remote's password gave.
    async fn renew(
        &self,
        upstream: &dyn Asker,
        remote: &Arc<Remote>,
        scope: &str,
        challenge: &Challenge,
        refused: bool,
        known: &mut Known,
    ) -> Result<Grant, Failure> {
        let making = async {
            match challenge.scheme.as_str() {
                "bearer" => {
                    let stale = known.refused.as_ref();
                    self.token(upstream, remote, scope, challenge, refused, stale).await
                }
                _ => match upstream.passwords().basic(remote, refused).await? {
                    Some(Basic { header, until }) => Ok(Made {
                        header,
                        life: until.map(|end| Life { renew: end, end }),
                        fresh: true,
                    }),
                    None => Err(Failure {
                        status: 403,
                        reason: "upstream wants credentials: set `username` and `password` on the remote".to_owned(),
                        unreachable: false,
                    }),
                },
            }
        };
        let made = match known.left() {
            // What is still good must not come to its end while another is waited for.
            Some(left) => match tokio::time::timeout(left / 2, making).await {
                Ok(made) => made,
                Err(_) => Err(Failure {
                    status: 504,
                    reason: "upstream's token service did not answer in time".to_owned(),
                    unreachable: true,
                }),
            },
            None => making.await,
        };
        match made {
            Ok(Made { header, life, fresh }) => {
                let id = self.ids.fetch_add(1, Relaxed);
                known.challenge = Some(challenge.clone());
                known.failed = None;
                known.life = life;
                let grant = Grant {
                    header,
                    fresh: false,
                    challenge: challenge.clone(),
                    id,
                };
                known.grant = Some(grant.clone());
                Ok(Grant { fresh, ..grant })
            }
            Err(failure) => {
                known.challenge = None;
                known.failed = Some((Instant::now(), failure.clone()));
                let usable = known.usable();
                if usable.is_some() {
                    tracing::warn!(
                        remote = %remote.name,
                        why = %failure.reason,
                        "a token could not be renewed: the last one is used to its end"
                    );
                }
                usable.ok_or(failure)
            }
        }
    }
}

impl Known {
    /// The grant, unless it is time to renew it.
    fn fresh(&self) -> Option<Grant> {
        let fresh = self.life.is_none_or(|life| Instant::now() < life.renew);
        self.grant.clone().filter(|_| fresh)
    }

    /// The grant, unless it has come to its end.
    fn usable(&self) -> Option<Grant> {
        let usable = self.life.is_none_or(|life| Instant::now() < life.end);
        self.grant.clone().filter(|_| usable)
    }

    /// How long the grant is still good, if it is.
    fn left(&self) -> Option<Duration> {
        let life = self.grant.as_ref().and(self.life)?;
        life.end.checked_duration_since(Instant::now())
    }

    fn failure_since(&self, moment: Instant) -> Option<Failure> {
        let (at, failure) = self.failed.as_ref()?;
        (*at >= moment).then(|| failure.clone())
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::formats::testing::remote;
    use crate::upstream::Upstream;
    use crate::upstream::challenge::{best, challenges};

    /// What nodes share, in memory.
    #[derive(Default)]
    struct Shelf(parking_lot::Mutex<std::collections::HashMap<String, (String, Duration)>>);

    #[async_trait]
    impl SharedTokens for Shelf {
        async fn get(&self, name: &str) -> Option<(String, Duration)> {
            self.0.lock().get(name).cloned()
        }
        fn put(&self, name: &str, token: &str, left: Duration) {
            self.0.lock().insert(name.to_owned(), (token.to_owned(), left));
        }
    }

    /// A token service that numbers its tokens.
    async fn service() -> (String, Arc<AtomicU64>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    let mut piece = [0; 1024];
                    let read = socket.read(&mut piece).await.unwrap();
                    seen.extend_from_slice(&piece[..read]);
                }
                let body = format!(
                    r#"{{"token": "T{}", "expires_in": 300}}"#,
                    counted.fetch_add(1, Relaxed) + 1
                );
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                socket.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        (base, count)
    }

    fn node(shelf: &Arc<Shelf>) -> Arc<Upstream> {
        let folder = tempfile::tempdir().unwrap();
        let remotes = folder.path().join("remotes.yaml");
        std::fs::write(&remotes, "remotes: {}\n").unwrap();
        let flags = crate::config::Flags {
            remotes: Some(remotes),
            data_dir: Some(folder.path().to_owned()),
            ..Default::default()
        };
        let loaded = crate::config::load(
            &crate::formats::packages(),
            &flags,
            &crate::config::Environment::default(),
            1,
        );
        let config = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.problems));
        let upstream = Arc::new(Upstream::new(&config, Arc::new(crate::metrics::Metrics::new())).unwrap());
        upstream.share_tokens(Arc::clone(shelf) as Arc<dyn SharedTokens>);
        upstream
    }

    #[tokio::test]
    async fn nodes_share_tokens_of_the_same_question_by_the_same_user() {
        let (base, asked) = service().await;
        let realm = format!(r#"Bearer realm="{base}token",service="registry""#);
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::WWW_AUTHENTICATE, realm.parse().unwrap());
        let challenge = best(challenges(&headers)).unwrap();
        let shelf = Arc::new(Shelf::default());
        let user = |name: &str| {
            let mut remote = remote("docker", &base);
            if !name.is_empty() {
                remote.credentials = Some(crate::config::Credentials {
                    username: name.to_owned(),
                    password: crate::config::Password::Fixed(crate::config::Secret::new("s3cret")),
                });
            }
            Arc::new(remote)
        };
        let grant = async |node: &Arc<Upstream>, name: &str, scope: &str, refused: Option<&Grant>| {
            let granted = node.tokens.grant(node, &user(name), scope, &challenge, refused).await;
            granted.unwrap_or_else(|failure| panic!("{}", failure.reason))
        };
        let token = |grant: &Grant| grant.header.to_str().unwrap().to_owned();

        let (a, b) = (node(&shelf), node(&shelf));
        let first = grant(&a, "", "repository:app:pull", None).await;
        assert_eq!((token(&first).as_str(), first.fresh), ("Bearer T1", true));
        // Another node's may be refused: it was not made for this question.
        let shared = grant(&b, "", "repository:app:pull", None).await;
        assert_eq!((token(&shared).as_str(), shared.fresh), ("Bearer T1", false));
        assert!(shared.header.is_sensitive());
        assert_eq!(asked.load(Relaxed), 1);
        assert_eq!(token(&grant(&b, "", "repository:other:pull", None).await), "Bearer T2");
        assert_eq!(
            token(&grant(&b, "robot", "repository:app:pull", None).await),
            "Bearer T3"
        );
        assert_eq!(
            token(&grant(&a, "robot", "repository:app:pull", None).await),
            "Bearer T3"
        );
        assert_eq!(
            token(&grant(&a, "other", "repository:app:pull", None).await),
            "Bearer T4"
        );

        // What upstream refused is replaced, for everybody.
        let renewed = grant(&b, "", "repository:app:pull", Some(&shared)).await;
        assert_eq!((token(&renewed).as_str(), renewed.fresh), ("Bearer T5", true));
        let c = node(&shelf);
        assert_eq!(token(&grant(&c, "", "repository:app:pull", None).await), "Bearer T5");
        // And not taken again, whoever still shares it.
        for (kept, _) in shelf.0.lock().values_mut() {
            *kept = "T1".to_owned();
        }
        let slot = b
            .tokens
            .known
            .get(&b.tokens.key(&user(""), "repository:app:pull"))
            .unwrap();
        slot.lock().await.grant = None;
        assert_eq!(token(&grant(&b, "", "repository:app:pull", None).await), "Bearer T6");
        // One that is about to end is worth nothing.
        for (_, left) in shelf.0.lock().values_mut() {
            *left = Duration::ZERO;
        }
        let d = node(&shelf);
        assert_eq!(token(&grant(&d, "", "repository:app:pull", None).await), "Bearer T7");
        for name in shelf.0.lock().keys() {
            assert!(
                name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{name}"
            );
        }
    }
}
