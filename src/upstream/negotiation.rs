//! How one question to a registry is authorized: what it goes with, and what is left to try when that is refused.
//!
//! A registry that names its token service again, having seen what that service has just given, means its refusal. But a
//! registry may also have forgotten what it gave out, and not say what it wants instead, or a balancer in front of it says
//! so in its place. Then the way that worked last is gone once more, then the one that is offered now, then the question
//! is asked without authorization.

use std::collections::VecDeque;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use super::Upstream;
use super::challenge::{Challenge, best, challenges};
use super::failure::Failure;
use super::token::Grant;
use crate::config::Remote;

/// Refusals that are answered within one question: what it goes with may be renewed by others meanwhile, and refused again.
const MAX_REFUSALS: u8 = 6;

/// What is left to try.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Satisfy(Challenge),
    /// Without authorization.
    Bare,
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Upstream's answer to the question.
    Answer,
    /// There is another way to ask.
    Again,
    /// No way led to an answer.
    Failed(Failure),
}

/// The state of one question's authorization.
#[derive(Debug)]
pub(super) struct Negotiation {
    scope: String,
    /// What the question went with last.
    grant: Option<Grant>,
    ways: VecDeque<Way>,
    /// Those that gave nothing, or what was made for this very question.
    tried: Vec<Challenge>,
    refusals: u8,
    /// Whether the last way of all was gone.
    bare: bool,
    /// Why the last way could not be gone.
    failure: Option<Failure>,
}

impl Negotiation {
    /// For a question that needs what opens `scope`.
    pub(super) fn new(scope: String) -> Self {
        Negotiation {
            scope,
            grant: None,
            ways: VecDeque::new(),
            tried: Vec::new(),
            refusals: 0,
            bare: false,
            failure: None,
        }
    }

    /// What the question goes with now.
    ///
    /// # Errors
    /// What upstream wants cannot be had.
    pub(super) async fn authorization(
        &mut self,
        upstream: &Arc<Upstream>,
        remote: &Arc<Remote>,
    ) -> Result<Option<HeaderValue>, Failure> {
        if !self.ways.is_empty() {
            self.grant = self.go(upstream, remote).await?;
        } else if self.refusals == 0 && self.grant.is_none() {
            self.grant = upstream.tokens.known(upstream, remote, &self.scope).await?;
        }
        Ok(self.grant.as_ref().map(|grant| grant.header.clone()))
    }

    /// The first of the ways left that can be gone.
    async fn go(&mut self, upstream: &Arc<Upstream>, remote: &Arc<Remote>) -> Result<Option<Grant>, Failure> {
        let (tokens, refused) = (&upstream.tokens, self.grant.take());
        self.failure = None;
        while let Some(way) = self.ways.pop_front() {
            match way {
                Way::Satisfy(challenge) => {
                    let granted = tokens.grant(upstream, remote, &self.scope, &challenge, refused.as_ref());
                    match granted.await {
                        Ok(grant) => {
                            self.tried.extend(Some(challenge).filter(|_| grant.fresh));
                            self.failure = None;
                            return Ok(Some(grant));
                        }
                        Err(failure) => {
                            self.tried.push(challenge);
                            self.failure = Some(failure);
                        }
                    }
                }
                // That a token service is away must not be taken for "there is no such image".
                Way::Bare if self.failure.as_ref().is_some_and(|failure| failure.unreachable) => {}
                Way::Bare => {
                    tokens.forget(remote, &self.scope, refused.as_ref()).await;
                    self.bare = true;
                    return Ok(None);
                }
            }
        }
        Err(self.failure.clone().unwrap_or_else(refusal))
    }

    /// What upstream's answer with this status and these headers means.
    pub(super) fn read(&mut self, remote: &Remote, status: u16, headers: &HeaderMap) -> Verdict {
        if status != 401 {
            // What a stranger is told of something private says nothing of it.
            return match self.bare && status >= 400 && remote.credentials.is_some() {
                true => Verdict::Failed(self.failure.clone().unwrap_or_else(refusal)),
                false => Verdict::Answer,
            };
        }
        let challenges = challenges(headers);
        let is_silent = challenges.is_empty();
        let offered = best(challenges);
        let is_unknown = !is_silent && offered.is_none();
        self.plan(offered);
        match &self.failure {
            _ if !self.ways.is_empty() => Verdict::Again,
            Some(failure) => Verdict::Failed(failure.clone()),
            None if is_unknown => Verdict::Failed(Failure {
                reason: "upstream wants a kind of authentication that is not known here".to_owned(),
                ..refusal()
            }),
            None => Verdict::Answer,
        }
    }

    /// Decides what is left to try after a refusal that `offered` came with.
    fn plan(&mut self, offered: Option<Challenge>) {
        self.refusals += 1;
        if self.refusals > MAX_REFUSALS {
            return self.ways.clear();
        }
        let is_new = |known: &Challenge| offered.as_ref().is_none_or(|offered| !offered.leads_where(known));
        let stands_by_it = self.grant.as_ref().is_some_and(|grant| !is_new(&grant.challenge));
        match &self.grant {
            Some(grant) if grant.fresh && stands_by_it => self.ways.clear(),
            Some(grant) if !grant.fresh => {
                let last = grant.challenge.clone();
                self.ways = match stands_by_it {
                    true => offered.map(Way::Satisfy).into_iter().collect(),
                    false => [Some(last), offered].into_iter().flatten().map(Way::Satisfy).collect(),
                };
                if !stands_by_it && !self.bare {
                    self.ways.push_back(Way::Bare);
                }
            }
            _ if self.tried.iter().all(is_new) => {
                if let Some(offered) = offered.map(Way::Satisfy).filter(|offered| !self.ways.contains(offered)) {
                    self.ways.push_front(offered);
                }
            }
            _ => {}
        }
    }
}

fn refusal() -> Failure {
    Failure {
        status: 403,
        reason: "upstream refuses what the remote's credentials give".to_owned(),
        unreachable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::testing::remote;

    const LAST: &str = "https://auth.example/token";
    const OTHER: &str = "https://other.example/token";

    fn offers(realm: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !realm.is_empty() {
            let challenge = format!("Bearer realm=\"{realm}\"");
            headers.insert(http::header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        }
        headers
    }

    fn challenge(realm: &str) -> Challenge {
        best(challenges(&offers(realm))).unwrap()
    }

    /// A question that went with what `realm` gave; nothing, if that is empty.
    fn asked(realm: &str, fresh: bool) -> Negotiation {
        let mut negotiation = Negotiation::new("repository:a:pull".to_owned());
        if !realm.is_empty() {
            negotiation.grant = Some(Grant::of(challenge(realm), fresh));
            negotiation.tried.extend(Some(challenge(realm)).filter(|_| fresh));
        }
        negotiation
    }

    #[test]
    fn what_is_left_to_try() {
        let remote = remote("docker", "https://registry.example/");
        let satisfy = |realm| Way::Satisfy(challenge(realm));
        for (went_with, fresh, offered, ways) in [
            ("", false, "", vec![]),
            ("", false, LAST, vec![satisfy(LAST)]),
            (LAST, false, LAST, vec![satisfy(LAST)]),
            (LAST, false, "", vec![satisfy(LAST), Way::Bare]),
            (LAST, false, OTHER, vec![satisfy(LAST), satisfy(OTHER), Way::Bare]),
            (LAST, true, LAST, vec![]),
            (LAST, true, "", vec![]),
            (LAST, true, OTHER, vec![satisfy(OTHER)]),
        ] {
            let mut negotiation = asked(went_with, fresh);
            let verdict = negotiation.read(&remote, 401, &offers(offered));
            assert_eq!(negotiation.ways, ways, "{went_with} {fresh} {offered}");
            let expected = if ways.is_empty() {
                Verdict::Answer
            } else {
                Verdict::Again
            };
            assert_eq!(verdict, expected, "{went_with} {fresh} {offered}");
        }
    }

    #[test]
    fn an_answer_to_a_stranger_says_nothing_of_what_is_private() {
        let mut private = remote("docker", "https://registry.example/");
        private.credentials = Some(crate::config::Credentials {
            username: "robot".to_owned(),
            password: crate::config::Password::Fixed(crate::config::Secret::new("secret")),
        });
        let public = remote("docker", "https://registry.example/");
        let mut negotiation = asked("", false);
        negotiation.bare = true;
        let mut read = |remote, status| negotiation.read(remote, status, &HeaderMap::new());
        assert_eq!(read(&public, 404), Verdict::Answer);
        assert_eq!(read(&private, 200), Verdict::Answer);
        assert_eq!(read(&private, 404), Verdict::Failed(refusal()));
    }

    #[test]
    fn no_sequence_of_refusals_goes_on_for_ever() {
        let remote = remote("docker", "https://registry.example/");
        for realms in [[LAST, LAST], [LAST, OTHER], ["", OTHER], ["", ""]] {
            let mut negotiation = asked(LAST, false);
            let mut again = 0;
            // Others renew the grant each time.
            while negotiation.read(&remote, 401, &offers(realms[again % 2])) == Verdict::Again {
                again += 1;
                assert!(again <= usize::from(MAX_REFUSALS), "{realms:?}");
            }
        }
    }
}
