//! Docker registry token authentication (<https://distribution.github.io/distribution/spec/auth/token/>): a registry
//! answers 401 and names a token service; what that gives is sent along until it is about to expire.
//!
//! A token belongs to a remote and a scope, and is asked for once however many fetches wait for it.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method};
use quick_cache::sync::Cache;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use url::{Host, Position, Url, form_urlencoded};

use super::challenge::{Challenge, best, challenges};
use super::password::Basic;
use super::{Ask, Exchange, Failure, Upstream, listed, within_credentials};
use crate::cache::hex;
use crate::config::{CredentialsWithin, Remote, is_loopback};
use crate::exact_url::ExactUrl;
use crate::fields;
use crate::formats::docker;

/// Scopes whose tokens are kept.
const REMEMBERED: usize = 4096;
/// The lifetime of a token whose service names none.
const LIFETIME: Duration = Duration::from_secs(60);
/// A token is not used in the last part of its lifetime, and at most so long before its end.
const MARGIN: Duration = Duration::from_secs(30);
const BEARER: &str = "Bearer ";
/// No service's answer is longer.
const MAX_ANSWER: usize = 1 << 20;
/// How long a registry wants of everybody what it wanted when it was asked.
const GREETED: Duration = Duration::from_secs(60);

/// Where nodes find each other's tokens.
#[async_trait]
pub trait SharedTokens: Send + Sync {
    /// A token and how long it is still good. A short while at most; `None` also when there is nobody to ask.
    async fn get(&self, name: &str) -> Option<(String, Duration)>;

    /// Shares one for what remains of its life. Waits for nobody.
    fn put(&self, name: &str, token: &str, left: Duration);
}

/// What opens a scope of a remote.
#[derive(Debug, Clone)]
pub struct Grant {
    /// `Authorization`.
    pub header: HeaderValue,
    /// It was made for this very question: upstream will not think better of another.
    pub fresh: bool,
    /// What it was got by.
    pub challenge: Challenge,
    id: u64,
}

#[cfg(test)]
impl Grant {
    pub fn of(challenge: Challenge, fresh: bool) -> Self {
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

/// The two moments of what is renewed while it is still good.
#[derive(Debug, Clone, Copy)]
struct Life {
    renew: Instant,
    end: Instant,
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
pub struct Tokens {
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
    pub fn share(&self, shared: Arc<dyn SharedTokens>) {
        let _ = self.shared.set(shared);
    }

    /// Other credentials after a reload are other tokens.
    fn key(&self, remote: &Remote, scope: &str) -> String {
        let credentials = remote.credentials.as_ref();
        let who = credentials.map(|credentials| (&credentials.username, &credentials.password));
        let base = remote.base_url.as_ref().map(Url::as_str);
        let print = self
            .hasher
            .hash_one((who, base, &remote.token_realms, remote.credentials_within));
        format!("{} {print:016x} {scope}", remote.name)
    }

    /// What opened `scope` before, renewed where it is about to expire. Where nothing is known, what the registry wants of
    /// everybody is seen to first, if the remote has credentials: some answer strangers as if there were nothing. `None`: it
    /// is not known whether anything is wanted.
    ///
    /// # Errors
    /// The token service failed, or refuses.
    pub async fn known(
        &self,
        upstream: &Arc<Upstream>,
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
    async fn kept(
        &self,
        upstream: &Arc<Upstream>,
        remote: &Arc<Remote>,
        scope: &str,
    ) -> Result<Option<Grant>, Failure> {
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

    /// What a registry wants to see of whoever comes (distribution-spec, "Determining Support"), for a remote that has
    /// credentials.
    async fn wanted_of_everybody(
        &self,
        upstream: &Arc<Upstream>,
        remote: &Arc<Remote>,
    ) -> Result<Option<Challenge>, Failure> {
        if remote.credentials.is_none() || remote.base_url.is_none() {
            return Ok(None);
        }
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(slot) = self.greetings.get_or_insert_with(&self.key(remote, ""), fresh);
        let waiting_since = Instant::now();
        let mut greeting = slot.lock().await;
        match &*greeting {
            Some((at, wanted)) if *at >= waiting_since => return wanted.clone(),
            Some((at, Ok(wanted))) if at.elapsed() < GREETED => return Ok(wanted.clone()),
            _ => {}
        }
        let wanted = self.greet(upstream, remote).await;
        *greeting = Some((Instant::now(), wanted.clone()));
        wanted
    }

    async fn greet(&self, upstream: &Arc<Upstream>, remote: &Arc<Remote>) -> Result<Option<Challenge>, Failure> {
        let question = ExactUrl {
            url: docker::version_url(remote),
            query: None,
        };
        let Answer { status, offered, .. } = self.ask_in_time(upstream, remote, &question, None).await?;
        match status {
            401 => Ok(best(offered)),
            // Without what it wants, a question might be answered as if there were nothing.
            429 | 500.. => Err(Failure {
                status: if status == 429 { 503 } else { 502 },
                reason: format!("upstream answered {status} to the question for its version (/v2/)"),
                unreachable: true,
            }),
            _ => Ok(None),
        }
    }

    /// What satisfies `challenge`, with which upstream answered a question that `refused` went along with.
    ///
    /// # Errors
    /// The token service failed, or refuses; or upstream wants credentials that the remote does not have.
    pub async fn grant(
        &self,
        upstream: &Arc<Upstream>,
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
    pub async fn forget(&self, remote: &Remote, scope: &str, refused: Option<&Grant>) {
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
        upstream: &Arc<Upstream>,
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
                _ => match upstream.passwords.basic(remote, refused).await? {
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

    /// A token of the service that a challenge names: another node's, unless upstream `refused` what there was before, or
    /// this very one was `stale`; else one that it is asked for.
    async fn token(
        &self,
        upstream: &Arc<Upstream>,
        remote: &Arc<Remote>,
        scope: &str,
        challenge: &Challenge,
        refused: bool,
        stale: Option<&HeaderValue>,
    ) -> Result<Made, Failure> {
        let unusable = |reason: &str| Failure {
            status: 502,
            reason: format!("upstream wants a token, and {reason}"),
            unreachable: true,
        };
        let realm = challenge.realm();
        let realm = realm.ok_or_else(|| unusable("names no service that gives one"))?;
        let question = question(realm, challenge.param("service"), scope);
        let url = &question.url;
        let trusted = may_see_credentials(remote, url);
        if !trusted && remote.credentials.is_some() {
            self.say_distrusted(remote, url);
        }
        let header = |basic: Option<Basic>| basic.map(|basic| basic.header);
        let mut credentials = match trusted {
            true => header(upstream.passwords.basic(remote, false).await?),
            false => None,
        };
        if let Some(shared) = self.shared.get().filter(|_| !refused)
            && let Some((token, left)) = shared.get(&shared_name(remote, &question, credentials.as_ref())).await
            && let Some((header, life)) = bearer(&token, left)
            && Instant::now() < life.renew
            && stale != Some(&header)
        {
            return Ok(Made {
                header,
                life: Some(life),
                fresh: false,
            });
        }
        let mut refused = false;
        loop {
            let asked = self.ask_in_time(upstream, remote, &question, credentials.clone());
            let Answer { status, body, .. } = asked.await?;
            let host = url.host_str().unwrap_or_default();
            match status {
                200 => {
                    let (header, life) =
                        read(&body).ok_or_else(|| unusable(&format!("{host} answered without one")))?;
                    if let (Some(shared), Ok(text)) = (self.shared.get(), header.to_str()) {
                        // Nobody is given what is about to be renewed.
                        let left = life.renew.saturating_duration_since(Instant::now());
                        let token = text.trim_start_matches(BEARER);
                        shared.put(&shared_name(remote, &question, credentials.as_ref()), token, left);
                    }
                    return Ok(Made {
                        header,
                        life: Some(life),
                        fresh: true,
                    });
                }
                401 | 403 => {
                    if trusted && !refused {
                        refused = true;
                        // A program may have another password by now.
                        let renewed = header(upstream.passwords.basic(remote, true).await?);
                        if renewed != credentials {
                            credentials = renewed;
                            continue;
                        }
                    }
                    return Err(Failure {
                        status: 403,
                        reason: format!(
                            "upstream's token service {host} answered {status}: the image is not there, is private, or the remote's credentials are wrong"
                        ),
                        unreachable: false,
                    });
                }
                status => {
                    return Err(Failure {
                        status: if status == 429 { 503 } else { 502 },
                        reason: format!("upstream's token service {host} answered {status}"),
                        unreachable: true,
                    });
                }
            }
        }
    }

    fn say_distrusted(&self, remote: &Remote, realm: &Url) {
        let host = realm.host_str().unwrap_or_default();
        let key = format!("{} {host}", remote.name);
        if self.distrusted.get(&key).is_none() {
            self.distrusted.insert(key, ());
            tracing::warn!(
                remote = %remote.name,
                %host,
                "the token service is on another domain, not reached by https, or outside of `credentials_within`: it is asked without the remote's credentials; list it in `token_realms` if it may have them"
            );
        }
    }

    /// One question to a token service, or to a registry about itself.
    async fn ask_in_time(
        &self,
        upstream: &Arc<Upstream>,
        remote: &Arc<Remote>,
        question: &ExactUrl,
        credentials: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        // The answer is small: its first byte and its last come together.
        let limit = remote.timeouts.connect + remote.timeouts.first_byte;
        match tokio::time::timeout(limit, self.ask(upstream, remote, question, credentials)).await {
            Ok(answer) => answer,
            Err(_) => Err(Exchange::timed_out(remote, &question.url)),
        }
    }

    /// Goes the way of any other question, redirects and addresses included.
    async fn ask(
        &self,
        upstream: &Arc<Upstream>,
        remote: &Arc<Remote>,
        question: &ExactUrl,
        credentials: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        let ask = Ask {
            method: Method::GET,
            accept: Some("application/json"),
            gzip: false,
            headers: Vec::new(),
            total: None,
            conditional: false,
        };
        let (upstream, remote) = (Arc::clone(upstream), Arc::clone(remote));
        let exchange = Exchange::to_token_service(upstream, remote, question.url.clone(), ask, credentials)
            .with_query(question.query.clone());
        let mut answering = exchange.ask_directly(&Bytes::new()).await?;
        let mut body = Vec::new();
        while body.len() <= MAX_ANSWER {
            match answering.piece().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break,
                Err(error) => return Err(answering.exchange.failure(&error)),
            }
        }
        // Another host's challenge says nothing of the registry.
        let offered = match answering.exchange.may_have_credentials() {
            true => challenges(&answering.header.headers),
            false => Vec::new(),
        };
        let status = answering.header.status.as_u16();
        answering.end().await;
        Ok(Answer { status, offered, body })
    }
}

/// What was answered to [`Tokens::ask`].
struct Answer {
    status: u16,
    offered: Vec<Challenge>,
    body: Vec<u8>,
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

/// Whether a token service may see the remote's credentials: one where the registry may see them, one that shares the
/// registry's registrable domain (by the public suffix list; not with `credentials_within: base_url`), or one that
/// `token_realms` lists; and but for the first over https or on this machine only.
fn may_see_credentials(remote: &Remote, realm: &Url) -> bool {
    let Some(base) = &remote.base_url else { return false };
    if within_credentials(remote, realm) {
        return true;
    }
    let safe = realm.scheme() == "https" || realm.host().is_some_and(|host| is_loopback(&host));
    let related = remote.credentials_within == CredentialsWithin::Host && same_domain(base, realm);
    safe && (related || listed(&remote.token_realms, realm))
}

fn same_domain(a: &Url, b: &Url) -> bool {
    if a.host() == b.host() {
        return true;
    }
    match (a.host(), b.host()) {
        (Some(Host::Domain(a)), Some(Host::Domain(b))) => {
            let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
            let domain = |name: &str| psl::domain_str(name.trim_end_matches('.')).map(str::to_owned);
            matches!((domain(&a), domain(&b)), (Some(a), Some(b)) if a == b)
        }
        _ => false,
    }
}

/// What a token service is asked. What a challenge says of the scope is not taken over, in its realm's query neither: a token is for one repository, and
/// for reading.
fn question(realm: ExactUrl, service: Option<&str>, scope: &str) -> ExactUrl {
    let mut asked = form_urlencoded::Serializer::new(String::new());
    if let Some(service) = service {
        asked.append_pair("service", service);
    }
    let asked = asked.append_pair("scope", scope).finish();
    let own = realm.query.unwrap_or_default();
    let is_scope = |pair: &str| form_urlencoded::parse(pair.as_bytes()).any(|(name, _)| name == "scope");
    let kept = own.split('&').filter(|pair| !pair.is_empty() && !is_scope(pair));
    let query = kept.chain([asked.as_str()]).collect::<Vec<_>>().join("&");
    ExactUrl {
        url: realm.url,
        query: Some(query),
    }
}

/// The token of a service's answer, and how long it is good.
fn read(body: &[u8]) -> Option<(HeaderValue, Life)> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<f64>,
        issued_at: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = some(answer.token).or(some(answer.access_token))?;
    let named = answer.expires_in.filter(|seconds| *seconds > 0.0);
    let lifetime = named.map_or(LIFETIME, |seconds| Duration::from_secs_f64(seconds.min(1e8)));
    // A service may hand out a token that it made a while ago. Clocks that differ by more than its life say nothing.
    let issued = answer.issued_at.as_deref().and_then(rfc3339);
    let age = issued.and_then(|issued| SystemTime::now().duration_since(issued).ok());
    let left = lifetime - age.filter(|age| *age < lifetime).unwrap_or_default();
    bearer(&token, left)
}

/// What a token that is good for so long is sent as, and until when.
fn bearer(token: &str, left: Duration) -> Option<(HeaderValue, Life)> {
    let mut header = HeaderValue::from_str(&format!("{BEARER}{token}")).ok()?;
    header.set_sensitive(true);
    let end = Instant::now().checked_add(left)?;
    let renew = end - MARGIN.min(left / 6);
    Some((header, Life { renew, end }))
}

/// Names what nodes share a token for: the question to the token service and as whom it was asked, for this registry. Nobody
/// can tell the credentials from it who could not guess them.
fn shared_name(remote: &Remote, question: &ExactUrl, credentials: Option<&HeaderValue>) -> String {
    let base = remote.base_url.as_ref().map_or("", Url::as_str);
    let mut print = Sha256::new();
    for part in [
        base.as_bytes(),
        question.url[..Position::AfterPath].as_bytes(),
        question.query.as_deref().unwrap_or_default().as_bytes(),
        credentials.map_or(b"", |credentials| credentials.as_bytes()),
    ] {
        print.update((part.len() as u64).to_be_bytes());
        print.update(part);
    }
    hex(&print.finalize())
}

/// A time as in RFC 3339 section 5.6.
fn rfc3339(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| fields::number::<u64>(text.get(range)?);
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let rest = text
        .get(19..)?
        .trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970, from the civil date (the year begins in March, so that the leap day is its last).
    let shifted = if month > 2 { year } else { year - 1 };
    let month_from_march = (month + 9) % 12;
    let days = 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + (153 * month_from_march + 2) / 5 + day - 1;
    let seconds = (days.checked_sub(719_468)? * 86_400) + hour * 3600 + minute * 60 + second;
    let offset = match rest {
        "Z" | "z" => 0,
        offset => {
            let (hours, minutes) = offset.get(1..)?.split_once(':')?;
            let offset_seconds =
                i64::from(fields::number::<u32>(hours)?) * 3600 + i64::from(fields::number::<u32>(minutes)?) * 60;
            match offset.as_bytes().first()? {
                b'+' => offset_seconds,
                b'-' => -offset_seconds,
                _ => return None,
            }
        }
    };
    let seconds = i64::try_from(seconds).ok()?.checked_sub(offset)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::formats::testing::remote;

    #[test]
    fn credentials_go_where_the_registry_is() {
        let may = |base: &str, realm: &str, listed: &[&str]| {
            let mut remote = remote("docker", base);
            let hosts = listed.iter().map(|host| crate::config::FileHost {
                scheme: "https",
                host: (*host).to_owned(),
                port: None,
            });
            remote.token_realms = hosts.collect();
            may_see_credentials(&remote, &Url::parse(realm).unwrap())
        };
        assert!(may(
            "https://registry.example.com/",
            "https://auth.example.com/token",
            &[]
        ));
        assert!(may("https://a.example.co.uk/", "https://b.example.co.uk/token", &[]));
        assert!(may(
            "https://registry.example.com/",
            "https://registry.example.com:8443/t",
            &[]
        ));
        assert!(may(
            "http://registry.example.com/",
            "http://registry.example.com/t",
            &[]
        ));
        assert!(may("http://127.0.0.1:5000/", "http://127.0.0.1:5001/t", &[]));
        assert!(may("http://localhost:5000/", "http://localhost:5001/t", &[]));
        assert!(may(
            "https://registry.example.com/",
            "https://tokens.example.org/t",
            &["tokens.example.org"]
        ));
        for (base, realm) in [
            ("https://registry.example.com/", "https://auth.example.org/token"),
            ("https://registry.example.com/", "http://auth.example.com/token"),
            ("https://registry.example.com/", "http://registry.example.com/token"),
            ("https://a.co.uk/", "https://b.co.uk/token"),
            ("https://a.herokuapp.com/", "https://b.herokuapp.com/token"),
            ("https://example.com/", "https://example.com.evil.org/token"),
            ("https://registry/", "https://auth/token"),
            ("http://127.0.0.1:5000/", "http://localhost:5001/t"),
            ("https://10.0.0.1/", "https://10.0.0.2/t"),
        ] {
            assert!(!may(base, realm, &[]), "{base} {realm}");
        }
        assert!(!may(
            "https://registry.example.com/",
            "http://tokens.example.org/t",
            &["tokens.example.org"]
        ));
    }

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
        let loaded = crate::config::load(&flags, &crate::config::Environment::default(), 1);
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

    #[test]
    fn a_realm_asks_for_no_scope_of_its_own() {
        for (realm, expected) in [
            ("https://a.example/t", "service=s&scope=repository%3Aapp%3Apull"),
            (
                "https://a.example/t?scope=x&account='a'&%73cope=y&scopes=z",
                "account='a'&scopes=z&service=s&scope=repository%3Aapp%3Apull",
            ),
        ] {
            let realm = ExactUrl::parse(realm).unwrap();
            let asked = question(realm, Some("s"), "repository:app:pull");
            assert_eq!(asked.query.as_deref(), Some(expected));
        }
    }

    #[test]
    fn answers_of_token_services() {
        let until = |body: &str| {
            let (header, life) = read(body.as_bytes())?;
            assert!(life.renew < life.end, "{body}");
            let left = life.renew.saturating_duration_since(Instant::now()).as_secs();
            Some((header.to_str().unwrap().to_owned(), left))
        };
        let near = |body: &str, token: &str, seconds: u64| {
            let (header, left) = until(body).unwrap();
            assert_eq!(header, format!("Bearer {token}"), "{body}");
            assert!(left.abs_diff(seconds) < 2, "{body}: {left}");
        };
        near(r#"{"token": "a"}"#, "a", 50);
        near(r#"{"access_token": "b", "expires_in": 300}"#, "b", 270);
        near(r#"{"token": "", "access_token": "b", "expires_in": 0}"#, "b", 50);
        near(
            r#"{"token": "a", "expires_in": 60, "issued_at": "2009-11-10T23:00:00Z"}"#,
            "a",
            50,
        );
        let a_minute_ago = SystemTime::now() - Duration::from_secs(60);
        let issued = crate::catalog::rfc3339(
            i64::try_from(a_minute_ago.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap(),
        );
        near(
            &format!(r#"{{"token": "a", "expires_in": 300, "issued_at": "{issued}"}}"#),
            "a",
            210,
        );
        for bad in ["", "{}", r#"{"token": 1}"#, r#"{"token": "a\nb"}"#, "<html>"] {
            assert_eq!(until(bad), None, "{bad}");
        }
    }

    #[test]
    fn times() {
        let seconds = |text: &str| Some(rfc3339(text)?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs());
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2024-02-29T12:30:01.25Z"), Some(1_709_209_801));
        assert_eq!(seconds("2024-02-29T12:30:01+01:30"), Some(1_709_204_401));
        assert_eq!(seconds("2024-03-01T00:00:00-00:30"), Some(1_709_253_000));
        for bad in [
            "",
            "2024",
            "2024-13-01T00:00:00Z",
            "2024-02-29T12:30:01",
            "2024-02-29T12:30:01é",
            "0000-01-01T00:00:00Z",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_time_panics(text in any::<String>(), numbers in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}[-+Z0-9:é]{0,6}") {
            let _ = (rfc3339(&text), rfc3339(&numbers));
        }
    }
}
