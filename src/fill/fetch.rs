//! A fetch from upstream, from taking a place to the end of the body.

use std::sync::Arc;

use http::Method;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::flight::Landing;
use super::upstream::{Opening, Ticket};
use super::{Fills, How, Outcome, PATIENCE, Purpose, Wanted};
use crate::cache::storage::FillSpec;
use crate::cache::{Finish, Object, now_ms};
use crate::config::Verify;
use crate::upstream::{Ask, Exchange, Failure, shown as without_query};

impl Fills {
    /// Asks upstream for `wanted`, tells those who wait what they get as soon as that is known, and sees to the end of it.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        wanted: &Wanted,
        method: &Method,
        mut previous: Option<Arc<Object>>,
        landing: Landing<'_>,
    ) {
        let is_verified = wanted.asset.remote.verify != Verify::Off && matches!(wanted.purpose, Purpose::Plain);
        let verifiable;
        let wanted = match is_verified && method == Method::GET {
            // Before a place is taken: the index needs one, too.
            true => {
                verifiable = self.verifiable(wanted.clone()).await;
                &verifiable
            }
            false => wanted,
        };
        let before = self.look_back(wanted, method);
        loop {
            let place = match self.upstream.place(wanted.remote()).await {
                Ok(place) => place,
                Err(failure) => return landing.publish(self.after_failure(wanted, previous, failure).await),
            };
            let ask = Ask {
                method: method.clone(),
                accept: wanted.asset.form.accept,
                gzip: wanted.asset.view.is_some(),
                headers: Vec::new(),
                total: None,
                conditional: method == Method::GET && wanted.policy.conditional && previous.is_some(),
            };
            let exchange = Exchange::new(
                Arc::clone(&self.upstream),
                Arc::clone(wanted.remote()),
                wanted.url.clone(),
                ask,
            )
            .with_query(wanted.asset.path.query.clone())
            .with_scope(wanted.asset.token_scope.clone())
            .with_stored(previous.is_some());
            let deadline = Arc::clone(&exchange.deadline);
            let (done, mut ended) = oneshot::channel();
            let (opening, mut opened) = oneshot::channel();
            let spec = Arc::new(FillSpec {
                key: wanted.key.clone(),
                class: wanted.policy.class,
                expected: wanted.expected.clone(),
                before: wanted.before,
                previous: previous.clone(),
                object: std::sync::OnceLock::new(),
                refused: std::sync::OnceLock::new(),
                done: Mutex::new(Some(done)),
                deadline: Arc::clone(&deadline),
                document: wanted.asset.view.is_some(),
            });
            let began = now_ms();
            // The ticket alone keeps `spec`: when the subrequest ends, however it ends, `ended` must hear of it.
            let ticket = Ticket::new(exchange, spec, wanted, opening);
            let task = AbortOnDrop(Some(self.proxy.spawn(ticket).await));

            let opening = tokio::select! {
                opening = &mut opened => opening.unwrap_or_else(|_| Opening::Failed(Failure {
                    status: 502,
                    reason: "the request to upstream ended without an answer".to_owned(),
                    unreachable: true,
                })),
                () = deadline.passed(PATIENCE) => {
                    drop(task);
                    let failure = Failure::timed_out(wanted.remote(), &wanted.url);
                    return landing.publish(self.after_failure(wanted, previous, failure).await);
                }
            };
            let growing = match opening {
                Opening::Growing(object) => {
                    landing.publish(Outcome::Object(Arc::clone(&object), How::Fetched));
                    object
                }
                Opening::NotModified => {
                    task.let_go();
                    let is_confirmed = previous.is_some();
                    previous = self.unless_gone(previous);
                    if is_confirmed && previous.is_none() {
                        // It was flushed while upstream was asked about it: it is asked for as a whole.
                        continue;
                    }
                    return landing.publish(self.not_modified(wanted, previous, began).await);
                }
                Opening::Answer(answer) => {
                    task.let_go();
                    let (outcome, removed) = self.after_answer(wanted, previous.as_ref(), answer).await;
                    if let Some(key) = removed {
                        self.note_removed(&key).await;
                    }
                    return landing.publish(outcome);
                }
                Opening::Coded => {
                    drop(task);
                    drop(place);
                    return landing.publish(self.fetch_coded(wanted, previous).await);
                }
                Opening::Direct(why) => {
                    if let Some(why) = why {
                        tracing::warn!(key = %wanted.key.shown(), %why, "an answer passes by unstored");
                    }
                    return landing.publish(Outcome::Direct);
                }
                Opening::Failed(failure) => {
                    return landing.publish(self.after_failure(wanted, previous, failure).await);
                }
            };
            let finish = tokio::select! {
                finish = &mut ended => {
                    task.let_go();
                    finish.ok()
                }
                () = deadline.passed(PATIENCE) => {
                    // Its end may have come at the same moment, and fails the object if it has not.
                    drop(task);
                    ended.await.ok()
                }
            };
            let finish = finish.unwrap_or_else(|| Finish::Failed("upstream fell silent".to_owned()));
            drop(place);
            if let Finish::Admitted(object) = &finish {
                self.compare_later(wanted, object, before);
            }
            return self.ended(wanted, &growing, finish);
        }
    }

    fn ended(self: &Arc<Self>, wanted: &Wanted, growing: &Arc<Object>, finish: Finish) {
        let (wrong, changed) = (matches!(finish, Finish::Wrong(_)), matches!(finish, Finish::Changed(_)));
        match finish {
            // What arrives aside is nobody's yet.
            Finish::Admitted(_) if wanted.replaces().is_some() => {}
            Finish::Admitted(object) => self.note_stored(&object, wanted.policy.class),
            Finish::Same(object) => self.note_refreshed(&object),
            Finish::Dropped => {}
            Finish::Failed(reason) | Finish::Wrong(reason) | Finish::Changed(reason) => {
                if changed {
                    self.metrics.changed(&wanted.asset.remote.name);
                }
                if wrong {
                    self.note_wrong(wanted);
                }
                if let Some(manifest) = &wanted.manifest {
                    // Upstream has moved on from it, or is about to.
                    let (fills, manifest) = (Arc::clone(self), manifest.clone());
                    tokio::spawn(async move { fills.note_doubt(&manifest).await });
                }
                self.metrics.fill_failed(&wanted.remote().name);
                tracing::warn!(key = %growing.key.shown(), url = %without_query(&wanted.url), %reason, "a transfer from upstream failed");
            }
        }
    }
}

/// A task that ends with its owner, unless it is let go.
struct AbortOnDrop(Option<tokio::task::JoinHandle<()>>);

impl AbortOnDrop {
    /// The transfer is over; what is left is giving the connection back to the pool.
    fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
