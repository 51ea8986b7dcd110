//! A list that is answered also where upstream does not have it ([`StandIn`]): upstream's own where it has one, else the one
//! that a name of upstream's stands for, else a list of nothing.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, header};
use pingora_error::Result;
use pingora_proxy::Session;

use super::dress::{self, Shown};
use super::provenance::Provenance;
use super::request::Request;
use super::resolve::Resolved;
use super::{Client, Ctx, relay};
use crate::cache::{Object, Reader, now_ms};
use crate::fill::reference::MAX_CONTENT;
use crate::fill::{Answer, How, Outcome, Wanted};
use crate::formats::stand_in::StandIn;
use crate::formats::{self, path};
use crate::policy;
use crate::session::reply::{self, Problem};

/// What was found.
pub(super) enum Brought {
    Object(Arc<Object>, Provenance),
    Answer(Arc<Answer>),
    /// Not stored, and upstream is not asked.
    Offline,
    /// The list cannot be stored, so that nobody here can read it.
    Unstorable,
}

impl Client {
    /// Answers a request for a list that has a stand-in.
    pub(super) async fn list(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        resolved: Arc<Resolved>,
        stand_in: &StandIn,
    ) -> Result<bool> {
        let head = session.req_header().method == Method::HEAD;
        let request = Request::plain(Arc::clone(&resolved), head);
        let mut instead = None;
        let brought = match Wanted::of(Arc::clone(&resolved.asset), resolved.policy) {
            Some(wanted) => self.bring(ctx, wanted).await,
            None => Brought::Offline,
        };
        match brought {
            Brought::Object(object, origin) if stand_in.is_list(object.head.content_type()) => {
                return self.deliver(session, ctx, &request, object, origin).await;
            }
            // Anything that is not this list means that there is none.
            Brought::Object(..) => {}
            Brought::Answer(answer) if has_none(&answer) => {}
            // What an unreachable upstream had before may be stored under the name.
            unknown => instead = Some(unknown),
        }
        let fallback = self.fallback(ctx, &resolved, stand_in).await;
        let fallback = match (fallback, instead) {
            (Ok(None) | Err(_), Some(unknown)) => Err(unknown),
            (fallback, _) => fallback,
        };
        let (body, source, status) = match fallback {
            Ok(Some((body, origin))) => (body, origin.source, origin.cache_status.into_owned()),
            Ok(None) => {
                let status = "artifactapi; fwd=miss; detail=none".to_owned();
                ((stand_in.empty)(), "cache", status)
            }
            Err(unknown) => return self.unknown(session, &resolved, unknown).await,
        };
        ctx.source = Some(source);
        let origin = (source, status.as_str());
        let mut made = dress::of_made(stand_in.media_type, &Shown::of(&resolved), origin)?;
        let body = match stand_in.filter.clone() {
            None => body,
            Some(filter) => {
                let (name, value) = filter.applied;
                made.insert_header(name, value)?;
                // A list may be long: others are waiting for this thread.
                let filtered = tokio::task::spawn_blocking(move || (filter.keep)(&body, &filter.wanted));
                match filtered.await {
                    Ok(filtered) => filtered,
                    // Only when the process ends.
                    Err(_) => return self.unknown(session, &resolved, Brought::Unstorable).await,
                }
            }
        };
        reply::write(session, made, body).await?;
        Ok(true)
    }

    /// What is on the list cannot be told: an error, never an empty list.
    async fn unknown(&self, session: &mut Session, resolved: &Resolved, why: Brought) -> Result<bool> {
        let problem = match why {
            Brought::Answer(answer) => {
                let source = ("remote", "artifactapi; fwd=miss");
                relay::answer(session, resolved, &answer, source).await?;
                return Ok(true);
            }
            Brought::Offline => {
                let detail = "this remote is offline and the list is not stored; remove `offline: true` to fetch it";
                Problem::new(504, detail)
            }
            Brought::Object(..) | Brought::Unstorable => {
                let list = resolved.stand_in.as_ref().map_or("list", |stand_in| stand_in.name);
                let detail = format!("upstream's {list} cannot be stored, and so not be read; try again");
                Problem::new(503, detail).header(header::RETRY_AFTER, "5")
            }
        };
        let problem = problem.at(&resolved.remote.name, &resolved.path.encoded);
        self.refuse(session, Some(resolved.format), problem).await
    }

    /// The list that a name of upstream's stands for. `Ok(None)`: there is none.
    async fn fallback(
        &self,
        ctx: &mut Ctx,
        resolved: &Resolved,
        stand_in: &StandIn,
    ) -> std::result::Result<Option<(Bytes, Provenance)>, Brought> {
        let remote = &resolved.remote;
        let name = path::of_decoded(&stand_in.pointer).ok();
        let name = name.and_then(|name| formats::asset(remote, name, Some(stand_in.media_type)));
        let Some(name) = name.map(Arc::new) else {
            return Ok(None);
        };
        let wanted = policy::classify(&name).and_then(|policy| Wanted::of(Arc::clone(&name), policy));
        let Some(wanted) = wanted else { return Ok(None) };
        let (pointer, origin) = match self.bring(ctx, wanted).await {
            Brought::Object(pointer, origin) => (pointer, origin),
            Brought::Answer(answer) if has_none(&answer) => return Ok(None),
            unknown => return Err(unknown),
        };
        let stands_for = pointer.head.stands_for.as_ref();
        let content = stands_for.and_then(|referent| name.content(&referent.digest));
        let content = content.and_then(|content| Wanted::of(Arc::new(content), policy::of_content(remote)));
        let Some(wanted) = content else { return Ok(None) };
        let object = match self.bring(ctx, wanted).await {
            Brought::Object(object, _) if stand_in.is_list(object.head.content_type()) => object,
            Brought::Object(..) => return Ok(None),
            Brought::Answer(answer) if has_none(&answer) => return Ok(None),
            unknown => return Err(unknown),
        };
        match Reader::new(object).collect(MAX_CONTENT).await {
            Ok(body) => Ok(Some((body.into(), origin))),
            Err(_) => Err(Brought::Unstorable),
        }
    }

    /// What is wanted: as it is stored, as upstream refused it a moment ago, or from there.
    pub(super) async fn bring(&self, ctx: &mut Ctx, wanted: Wanted) -> Brought {
        let found = self.fills.store.open_object(&wanted.key).await;
        if let Some(object) = &found {
            let left = object.fresh.left(wanted.policy.class, wanted.policy.ttl, now_ms());
            if left.is_fresh() || wanted.remote().offline {
                self.fills.store.count_use(object);
                return Brought::Object(
                    Arc::clone(object),
                    Provenance::of(object, &How::Found, false, false, ctx),
                );
            }
        } else if let Some(answer) = self.fills.remembered(&wanted.asked) {
            return Brought::Answer(answer);
        }
        if wanted.remote().offline {
            return Brought::Offline;
        }
        match self.fills.obtain(wanted, Method::GET).await {
            (Outcome::Object(object, how), joined) => {
                let origin = Provenance::of(&object, &how, found.is_some(), joined, ctx);
                Brought::Object(object, origin)
            }
            (Outcome::Answer(answer), _) => Brought::Answer(answer),
            (Outcome::Direct, _) => Brought::Unstorable,
        }
    }
}

/// Whether upstream's own answer says no more than that it has nothing like this.
fn has_none(answer: &Answer) -> bool {
    answer.reason.is_none() && !matches!(answer.status, 401 | 403 | 429 | 500..)
}
