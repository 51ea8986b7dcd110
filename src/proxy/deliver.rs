//! An object goes to the client, through its view where it has one.

use std::sync::Arc;
use std::time::Duration;

use http::header;
use pingora_error::Result;
use pingora_proxy::Session;

use super::accept::{accepts, wants_gzip};
use super::dress::Shown;
use super::provenance::Provenance;
use super::request::Request;
use super::serve::{self, Dress};
use super::{Client, Ctx};
use crate::cache::{Class, Left, Millis, Object, now_ms};
use crate::fill::How;
use crate::fill::decoded::{has_gzip_bytes, is_gzip};
use crate::fill::view::{Kind, Spec, ViewError};
use crate::session::reply::Problem;
use crate::session::writing::Reading;

impl Client {
    /// What a client gets to see of an original.
    async fn view(
        &self,
        request: &Request,
        original: &Arc<Object>,
        kind: Kind,
        gzip: bool,
    ) -> std::result::Result<Arc<Object>, ViewError> {
        let gzip = gzip && kind != Kind::Decoded;
        if let Some(view) = self.views.known(original, kind, gzip, &request.remote_url).await {
            return Ok(view);
        }
        let view = request.view.filter(|_| kind != Kind::Decoded);
        let rewriting = view.map(|view| {
            let (asset, url) = (Arc::clone(&request.asset), request.remote_url.clone());
            self.views.rewriting(asset, view, url)
        });
        self.views.open(original, &Spec { rewriting, gzip }).await
    }

    /// Serves an object, through its view where it has one.
    pub(super) async fn deliver(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        request: &Request,
        original: Arc<Object>,
        origin: Provenance,
    ) -> Result<bool> {
        self.fills.store.count_use(&original);
        if original.head.stands_for.is_some() {
            return Box::pin(self.deliver_referent(session, ctx, request, original, origin)).await;
        }
        let found = (Some(&original.head.headers), Some(&*original));
        if self
            .is_held(session, &Shown::of(request), request.policy, found)
            .await?
        {
            return Ok(true);
        }
        if let Err(reason) = request.asset.check_page(&original.head.headers) {
            let problem = Problem::new(502, reason).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        let encoded = original.head.content_encoding();
        let kind = match (request.view, encoded) {
            (Some(view), _) => Some(self.views.kind(&request.remote, view)),
            // A coding that the client did not accept is taken off, and so is one that upstream only names.
            (None, Some(coding)) if is_gzip(coding) => {
                let as_it_is = accepts(session, "gzip") && has_gzip_bytes(&original).await;
                (!as_it_is).then_some(Kind::Decoded)
            }
            (None, _) => None,
        };
        if let Some(coding) = encoded.filter(|coding| kind.is_none() && !is_gzip(coding) && !accepts(session, coding)) {
            let detail =
                format!("upstream sent this in the coding {coding}, unasked, and the client does not accept it");
            let problem = Problem::new(502, detail).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        let object = match kind {
            None => Arc::clone(&original),
            Some(kind) => match self.view(request, &original, kind, wants_gzip(session)).await {
                Ok(view) => {
                    self.fills.store.count_use(&view);
                    view
                }
                Err(error) => {
                    let status = match error {
                        ViewError::NoSpace(_) | ViewError::Busy => 503,
                        ViewError::Coding(_) => 502,
                    };
                    let problem = Problem::new(status, format!("the document cannot be rewritten: {error}"))
                        .at(&request.remote.name, &request.path.encoded);
                    return self.refuse(session, Some(request.format), problem).await;
                }
            },
        };
        if kind.is_none() && !object.is_complete() && self.is_far_ahead(session, &object) {
            return self.range_of_its_own(session, ctx, request, &object).await;
        }
        let usable = if serve::needs_whole(session, &object) {
            object.settled().await
        } else {
            serve::has_begun(&object).await
        };
        if !usable {
            if let Some(copy) = self.fills.copy_before(&original, request.policy).await {
                let origin = Provenance::of(&copy, &How::Stale(None), true, false, ctx);
                return Box::pin(self.deliver(session, ctx, request, copy, origin)).await;
            }
            let detail = if kind.is_some() {
                "upstream's document could not be rewritten: it ended early, or is not what its type says"
            } else {
                "the transfer from upstream ended early; try again"
            };
            let problem = Problem::new(502, detail)
                .at(&request.remote.name, &request.path.encoded)
                .header(header::RETRY_AFTER, "1");
            return self.refuse(session, Some(request.format), problem).await;
        }
        let now = now_ms();
        let dress = Dress {
            policy: request.policy,
            left: match kind {
                Some(_) => request.left(&original, now).at_most(left_of_view(&object, now)),
                None => request.left(&original, now),
            },
            age: (!origin.fresh_from_upstream).then(|| {
                let asked_for = request.pointer.as_deref().unwrap_or(&original);
                now.saturating_sub(asked_for.fresh.checked_at()) / 1000
            }),
            source: origin.source,
            cache_status: origin.cache_status,
            shown: Shown::of(request),
            by_coding: kind.is_some() || encoded.is_some(),
            presented_as: request.presented_as.filter(|_| is_html(original.head.content_type())),
            head_only: request.head,
        };
        ctx.source = Some(origin.source);
        ctx.sent += serve::serve(&mut Reading { session }, &object, &dress).await?;
        Ok(true)
    }
}

/// How long a view can be shown: another takes its place when a release that is held back is due. Its original is trusted by a
/// policy of its own.
pub(super) fn left_of_view(view: &Object, now: Millis) -> Left {
    view.fresh.left(Class::Immutable, Duration::ZERO, now)
}

pub(super) fn is_html(content_type: &str) -> bool {
    content_type.to_ascii_lowercase().starts_with("text/html")
}
