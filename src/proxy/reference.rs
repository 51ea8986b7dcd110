//! A name that stands for content with a digest (a registry's tag), answered by what it stands for.

use std::sync::Arc;

use http::{Method, header};
use pingora_error::Result;
use pingora_proxy::Session;

use super::provenance::Provenance;
use super::request::Request;
use super::{Client, Ctx, relay};
use crate::cache::{Left, Object, now_ms};
use crate::fill::{How, Outcome, Wanted};
use crate::policy;
use crate::session::reply::Problem;
use crate::status::is_absent;

impl Client {
    /// `origin` tells how it was come to know where the name leads. To a HEAD that is the whole answer.
    pub(super) async fn deliver_referent(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        request: &Request,
        pointer: Arc<Object>,
        origin: Provenance,
    ) -> Result<bool> {
        let stands_for = pointer.head.stands_for.as_ref();
        let content = stands_for.and_then(|referent| request.asset.content(&referent.digest));
        let content = content.and_then(|content| Wanted::of(Arc::new(content), policy::of_content(&request.remote)));
        let (Some(referent), Some(wanted)) = (stands_for, content) else {
            let problem = Problem::new(502, "what is stored of this tag cannot be used; flush it");
            let problem = problem.at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        };
        if request.head {
            let mut headers = pointer.head.headers.clone();
            headers.insert(header::CONTENT_LENGTH, referent.size.into());
            if !origin.fresh_from_upstream {
                let age = now_ms().saturating_sub(pointer.fresh.checked_at()) / 1000;
                headers.insert(header::AGE, age.into());
            }
            let left = pointer.fresh.left(request.policy.class, request.policy.ttl, now_ms());
            let seconds = match left {
                Left::For(left) => left.as_secs(),
                Left::ForEver | Left::Expired(_) => 0,
            };
            ctx.source = Some(origin.source);
            let cache_control = format!("public, max-age={seconds}");
            return self
                .answer_head(session, request, &headers, &cache_control, &origin)
                .await;
        }
        let content = request.for_content(wanted.key.clone(), pointer);
        if let Some(object) = self.fills.store.open_object(&wanted.key).await {
            return self.deliver(session, ctx, &content, object, origin).await;
        }
        if request.remote.offline && self.fills.shared.is_alone() {
            let detail =
                "this remote is offline and what the tag stands for is not stored; remove `offline: true` to fetch it";
            let problem = Problem::new(504, detail).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        match self.fills.obtain(wanted.clone(), Method::GET).await {
            (Outcome::Object(object, how), joined) => {
                let fetched = how == How::Fetched;
                let origin = match fetched {
                    true => Provenance::of(&object, &how, false, joined, ctx),
                    false => origin,
                };
                self.deliver(session, ctx, &content, object, origin).await
            }
            (Outcome::Answer(answer), _) => {
                if is_absent(answer.status) && !origin.fresh_from_upstream && self.fills.note_doubt(&request.key).await
                {
                    // The name may have moved on, and upstream has let go of what it stood for.
                    if let Some(mut wanted) = Wanted::of(Arc::clone(&request.asset), request.policy)
                        && let (Outcome::Object(moved, how), joined) = {
                            wanted.force = true;
                            self.fills.obtain(wanted, Method::GET).await
                        }
                        && how == How::Fetched
                    {
                        let origin = Provenance::of(&moved, &how, true, joined, ctx);
                        return Box::pin(self.deliver_referent(session, ctx, request, moved, origin)).await;
                    }
                }
                ctx.cache = "miss";
                let source = ("remote", "artifactapi; fwd=miss");
                relay::answer(session, request, &answer, source).await?;
                Ok(true)
            }
            (Outcome::Direct, _) => {
                ctx.cache = "bypass";
                self.pass_by(session, ctx, (request, &wanted), "artifactapi; fwd=bypass")
                    .await
            }
        }
    }
}
