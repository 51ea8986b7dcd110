//! A name that stands for content with a digest (a registry's tag), answered by what it stands for.

use std::sync::Arc;

use http::{Method, header};
use pingora_error::Result;
use pingora_proxy::Session;

use super::artifact::{Origin, Request};
use super::{Client, Ctx, relay};
use crate::cache::{Key, Left, Object, now_ms};
use crate::fill::{How, Outcome, Wanted};
use crate::formats::{ArtifactPath, Form, path};
use crate::policy;
use crate::session::reply::Problem;

impl Client {
    /// `origin` tells how it was come to know where the name leads. To a HEAD that is the whole answer.
    pub(super) async fn deliver_referent(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        request: &Request,
        pointer: Arc<Object>,
        origin: Origin,
    ) -> Result<bool> {
        let named = self.named(request, &pointer);
        let (Some(referent), Some((content_path, key))) = (&pointer.head.stands_for, named) else {
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
        let content = request.for_content(key.clone(), pointer);
        if let Some(object) = self.fills.store.open_object(&key).await {
            return self.deliver(session, ctx, &content, object, origin).await;
        }
        if request.remote.offline && self.fills.shared.is_alone() {
            let detail =
                "this remote is offline and what the tag stands for is not stored; remove `offline: true` to fetch it";
            let problem = Problem::new(504, detail).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        let form = request
            .format
            .negotiate(&content_path.decoded, None)
            .unwrap_or(Form::ONLY);
        let policy = policy::of_content(&request.remote);
        let wanted = Wanted::of(&request.remote, request.format, &content_path, (key, policy, form));
        match self.fills.obtain(wanted.clone(), Method::GET).await {
            (Outcome::Object(object, how), joined) => {
                let fetched = how == How::Fetched;
                let origin = match fetched {
                    true => Origin::of(&object, &how, false, joined, ctx),
                    false => origin,
                };
                self.deliver(session, ctx, &content, object, origin).await
            }
            (Outcome::Answer(answer), _) => {
                let gone = matches!(answer.status, 404 | 410);
                if gone && !origin.fresh_from_upstream && self.fills.note_doubt(&request.key).await {
                    // The name may have moved on, and upstream has let go of what it stood for.
                    let url = request.format.upstream_url(&request.remote, &request.path);
                    let mut wanted = request.wanted(url);
                    wanted.force = true;
                    let (outcome, joined) = self.fills.obtain(wanted, Method::GET).await;
                    if let Outcome::Object(moved, how) = outcome
                        && how == How::Fetched
                    {
                        let origin = Origin::of(&moved, &how, true, joined, ctx);
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

    /// Path and key of the content that `pointer` leads to.
    fn named(&self, request: &Request, pointer: &Object) -> Option<(ArtifactPath, Key)> {
        let digest = &pointer.head.stands_for.as_ref()?.digest;
        let content = request.format.referent(&request.path.decoded, digest)?;
        let stored = request.format.stored_as(&content)?;
        let key = Key::new(&request.remote.name, &stored, None, "");
        Some((path::of_decoded(&content).ok()?, key))
    }
}
