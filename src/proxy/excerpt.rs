//! Documents that are answered from another one ([`Excerpt`]), which says when what it names was published.

use std::sync::Arc;

use http::header;
use pingora_error::Result;
use pingora_proxy::Session;
use tokio::sync::Semaphore;

use super::dress::{self, Shown};
use super::provenance::Provenance;
use super::resolve::Resolved;
use super::stand_in::Brought;
use super::{Client, Ctx, relay};
use crate::cache::{Object, Reader};
use crate::config::Config;
use crate::fill::view::{Spec, ViewError};
use crate::fill::{Wanted, offline};
use crate::formats::excerpt::{Excerpt, Found};
use crate::formats::release::{LONGEST, ListedBy, ONE_FORM};
use crate::formats::{self, Asset, path};
use crate::policy;
use crate::session::public::{self, arrival};
use crate::session::reply::{self, Problem};

/// Whole documents that are in memory at once.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

impl Client {
    /// Answers a request for what another document says.
    pub(super) async fn excerpt(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        config: &Config,
        (resolved, excerpt): (Arc<Resolved>, &Excerpt),
    ) -> Result<bool> {
        let (whole, original, origin) = match self.whole_of(ctx, &resolved, excerpt).await {
            Ok(found) => found,
            Err(NoWhole::Answer(answer)) => {
                let source = ("remote", "artifactapi; fwd=miss");
                relay::answer(session, &resolved, &answer, source).await?;
                return Ok(true);
            }
            Err(NoWhole::Problem(problem)) => return self.refuse_for(session, &resolved, problem).await,
        };
        let (remote, arrival) = (&resolved.remote, arrival(session));
        let Some(remote_url) = public::of_remote(&config.settings, &arrival, &remote.name, resolved.bound_host) else {
            let problem = Problem::new(400, "the Host header is missing or not a host name");
            return self.refuse_for(session, &resolved, problem).await;
        };
        let found = match self.find(&whole, &original, remote_url, excerpt).await {
            Ok(found) => found,
            Err(problem) => return self.refuse_for(session, &resolved, problem).await,
        };
        match found {
            Found::Document(document) => {
                ctx.source = Some(origin.source);
                let origin = (origin.source, &*origin.cache_status);
                let made = dress::of_made("application/json", &Shown::of(&resolved), origin)?;
                reply::write(session, made, document.into()).await?;
                return Ok(true);
            }
            Found::Restricted { file } => {
                // As its file is.
                let release = Asset {
                    view: None,
                    lists: false,
                    listed_by: Some(ListedBy {
                        indexes: vec![whole.path.encoded.clone()],
                        forms: ONE_FORM,
                        file,
                        steps: 0,
                        tells_dates: true,
                    }),
                    ..Asset::clone(&resolved.asset)
                };
                let shown = Shown {
                    asset: &release,
                    ..Shown::of(&resolved)
                };
                let policy = policy::of_content(remote);
                if self.is_held(session, &shown, policy, (None, None)).await? {
                    return Ok(true);
                }
            }
            Found::Nothing => {}
        }
        let detail = format!("the document of {} names nothing of this name", excerpt.whole);
        self.refuse_for(session, &resolved, Problem::new(404, detail)).await
    }

    /// The document that has all of it, as upstream has it.
    async fn whole_of(
        &self,
        ctx: &mut Ctx,
        resolved: &Resolved,
        excerpt: &Excerpt,
    ) -> std::result::Result<(Arc<Asset>, Arc<Object>, Provenance), NoWhole> {
        let problem = |status, detail: &str| Err(NoWhole::Problem(Problem::new(status, detail)));
        let path = path::of_decoded(&excerpt.whole).ok();
        let whole = path
            .and_then(|path| formats::asset(&resolved.remote, path, None))
            .map(Arc::new);
        let Some(whole) = whole.filter(|whole| whole.view.is_some()) else {
            return problem(404, "there is no such document");
        };
        let wanted = policy::classify(&whole).and_then(|policy| Wanted::of(Arc::clone(&whole), policy));
        let Some(wanted) = wanted else {
            return problem(
                403,
                "no pattern of this remote allows the document that this is answered from; add one to `mutable_patterns`",
            );
        };
        match self.bring(ctx, wanted).await {
            Brought::Object(original, origin) => Ok((whole, original, origin)),
            Brought::Answer(answer) => Err(NoWhole::Answer(answer)),
            Brought::Offline => {
                let failure = offline();
                problem(failure.status, &failure.reason)
            }
            Brought::Unstorable => problem(
                503,
                "there is no space for the document that this is answered from; free some, or raise cache.disk_bytes",
            ),
        }
    }

    /// What `whole`, as clients get it, says of what is wanted.
    async fn find(
        &self,
        whole: &Arc<Asset>,
        original: &Arc<Object>,
        remote_url: String,
        excerpt: &Excerpt,
    ) -> std::result::Result<Found, Problem> {
        let unreadable = || {
            let detail = "upstream's document could not be read: it ended early, or is not what its type says";
            Problem::new(502, detail).header(header::RETRY_AFTER, "1")
        };
        let view = whole.view.ok_or_else(unreadable)?;
        let spec = Spec {
            rewriting: Some(self.views.rewriting(Arc::clone(whole), view, remote_url)),
            gzip: false,
        };
        let view = self.views.open(original, &spec).await.map_err(|error| {
            let status = match error {
                ViewError::NoSpace(_) | ViewError::Busy => 503,
                ViewError::Coding(_) => 502,
            };
            Problem::new(status, format!("the document cannot be rewritten: {error}"))
        })?;
        // Nobody waits for upstream with a place taken.
        if !view.settled().await {
            return Err(unreadable());
        }
        let _place = AT_ONCE.acquire().await;
        let document = Reader::new(view).collect(LONGEST).await.map_err(|_| unreadable())?;
        let (find, wanted) = (excerpt.find, excerpt.wanted.clone());
        // It may be long: others are waiting for this thread.
        let found = tokio::task::spawn_blocking(move || find(&document, &wanted)).await;
        found.map_err(|_| unreadable())
    }

    async fn refuse_for(&self, session: &mut Session, resolved: &Resolved, problem: Problem) -> Result<bool> {
        let problem = problem.at(&resolved.remote.name, &resolved.path.encoded);
        self.refuse(session, Some(resolved.format), problem).await
    }
}

/// Why there is no whole document.
enum NoWhole {
    /// Upstream has none, or says why.
    Answer(Arc<crate::fill::Answer>),
    Problem(Problem),
}
