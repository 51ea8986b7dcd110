//! Token services: what they are asked, and with which credentials.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use url::{Url, form_urlencoded};

use super::answer::{BEARER, bearer, read};
use super::asker::{Answer, Asker};
use super::shared::shared_name;
use super::{Made, Tokens};
use crate::config::Remote;
use crate::exact_url::ExactUrl;
use crate::upstream::challenge::Challenge;
use crate::upstream::failure::Failure;
use crate::upstream::password::Basic;
use crate::upstream::trust::may_see_credentials;

impl Tokens {
    /// A token of the service that a challenge names: another node's, unless upstream `refused` what there was before, or
    /// this very one was `stale`; else one that it is asked for.
    pub(super) async fn token(
        &self,
        upstream: &dyn Asker,
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
            true => header(upstream.passwords().basic(remote, false).await?),
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
            let asked = upstream.ask(remote, &question, credentials.clone());
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
                        let renewed = header(upstream.passwords().basic(remote, true).await?);
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
}

/// What a token service is asked. What a challenge says of the scope is not taken over, in its realm's query neither: a token
/// is for one repository, and for reading.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
