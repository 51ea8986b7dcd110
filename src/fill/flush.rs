//! A flush: what the catalogue lists after its queue is drained, fills in progress, remembered refusals, the views of what it
//! matches, and its copies in the bucket. Other nodes hear of it, and do the same with what they have.
//!
//! Its cost is that of what it matches where the catalogue is known to list all that this node stores. Where it is not (it is
//! shared, was away, or is a new one), all that is stored is looked at behind that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::ledger::Covers;
use super::{Fills, PATIENCE, Views, record};
use crate::bucket::PREFIX;
use crate::cache::{Expected, Key, Millis, Parts, Sweep, Swept, Walked, now_ms, parse_hash};
use crate::catalog::{CatalogError, Class as Listed, Event, Filter, FlushAnswer, FlushMode, FlushRequest, Record};
use crate::config::{Config, RemoteType};
use crate::fleet::Flush;
use crate::formats::{self, Class, path};
use crate::policy;
use crate::relist;

/// Objects of the bucket that are looked at at once.
const SWEEPERS: usize = 8;
/// Rows looked at in one question to the catalogue.
const PAGE: usize = 500;
/// Rows that are held while they are worked on.
const MAX_LISTED: usize = 50_000;
/// Rows that are worked on in one go.
const AT_ONCE: usize = 100;
/// Whoever asked for a flush is answered within this, however much there is to do.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Why a flush was not made.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    #[error("{0}; flushing all, or all of one remote, works without the catalogue")]
    NeedsCatalogue(CatalogError),
    #[error("{0}")]
    Catalogue(#[from] CatalogError),
}

/// A flush that this node makes by what the catalogue lists.
struct Making {
    fills: Arc<Fills>,
    /// Of what is flushed; those of a flush that another node made are left to eviction.
    views: Option<Arc<Views>>,
    /// Whether the flush is about a key, whatever the class of the object was when it was listed.
    covers: Covers,
    request: FlushRequest,
    flush: Flush,
    /// From its beginning to its end; `None`: nothing is done.
    sweep: Option<Arc<Sweep>>,
    /// How far it is.
    answer: Mutex<FlushAnswer>,
    /// How much the disk refused to remove or expire.
    refused: AtomicU64,
}

impl Making {
    /// Acts on what is listed; whether that is all that this node stores of it.
    ///
    /// # Errors
    /// The catalogue does not answer. What was flushed until then stays flushed.
    async fn work(self: &Arc<Self>) -> Result<bool, CatalogError> {
        let catalog = &self.fills.catalog;
        if self.sweep.is_some() {
            // What was admitted before the flush was in force has to be listed too.
            catalog.drain().await?;
        }
        let was_whole = catalog.lists_all().await;
        // What is listed has the class that it had when it was; what has the wanted one now is meant as well.
        let (wanted, filter) = (self.request.filter.class, any_class(&self.request.filter));
        let is_meant = |record: &Record| {
            let key = key_of(record).text;
            let of_class = wanted.is_none_or(|class| record.class == class);
            (self.covers)(&key) && (of_class || self.sweep.as_ref().is_some_and(|sweep| (sweep.covers)(&key)))
        };
        let mut after = None;
        loop {
            let mut listed = Vec::new();
            loop {
                let page = catalog.matching(&filter, after, PAGE).await?;
                listed.extend(page.records.into_iter().filter(is_meant));
                after = page.next;
                if after.is_none() || listed.len() >= MAX_LISTED {
                    break;
                }
            }
            {
                let mut answer = self.answer.lock();
                answer.matched += listed.len() as u64;
                answer.bytes += listed.iter().map(|record| record.size).sum::<u64>();
            }
            if let Some(sweep) = &self.sweep {
                while !listed.is_empty() {
                    let some = listed.split_off(listed.len().saturating_sub(AT_ONCE));
                    let (making, sweep) = (Arc::clone(self), Arc::clone(sweep));
                    let acting = tokio::task::spawn_blocking(move || making.act(&sweep, some));
                    // What was not gone through to its end may still be there: the flush stays in force.
                    if acting.await.is_err() {
                        self.refused.fetch_add(1, Relaxed);
                    }
                }
            }
            if after.is_none() {
                break;
            }
        }
        if self.sweep.is_some() && self.request.mode == FlushMode::Delete && is_all(&self.request.filter) {
            // Views of what was no longer listed, and of bases that a restart forgot.
            self.fills.store.remove_where(|key| Parts::of(key).is_view()).await;
        }
        Ok(was_whole && catalog.lists_all().await)
    }

    /// On some of what is listed. Blocks.
    fn act(&self, sweep: &Sweep, records: Vec<Record>) {
        let (fills, mode) = (&self.fills, self.request.mode);
        for listed in records {
            let Some(hash) = parse_hash(&listed.key) else { continue };
            let swept = fills.store.sweep_one(sweep, &hash);
            match (swept, mode) {
                (Swept::Failed, _) => {
                    self.refused.fetch_add(1, Relaxed);
                    continue;
                }
                // It was fetched anew meanwhile.
                (Swept::Newer, _) => {}
                (Swept::Made(id), FlushMode::Delete) => {
                    if let (Some(id), Some(views)) = (id, &self.views) {
                        views.forget(id);
                    }
                    let key = key_of(&listed);
                    if let Some(bucket) = &fills.shared.bucket {
                        bucket.remove_older(&key, sweep.at);
                    }
                    if !self.is_back_elsewhere(&key) {
                        relist::strike(&fills.catalog, fills.store, &hash, record::removed(&key));
                    }
                }
                (Swept::Made(_), FlushMode::Expire) => {
                    fills.catalog.record(expired(listed.remote, listed.path, listed.form));
                }
            }
            let mut answer = self.answer.lock();
            match mode {
                FlushMode::Delete => answer.deleted += 1,
                FlushMode::Expire => answer.expired += 1,
            }
        }
    }

    /// Whether another node, which writes to the same catalogue, may have fetched it again since: then its row stays. Blocks.
    fn is_back_elsewhere(&self, key: &Key) -> bool {
        let began = Duration::from_millis(now_ms().saturating_sub(self.flush.at));
        let Some(fleet) = &self.fills.shared.fleet else {
            return false;
        };
        if !self.fills.catalog.is_shared() || began < ANSWERED_WITHIN {
            return false;
        }
        let seen = Handle::current().block_on(fleet.look(key));
        let word = seen.ok().and_then(|seen| seen.word);
        word.is_some_and(|word| !self.fills.shared.ledger.is_flushed_word(key, &word))
    }

    /// From what was listed to the last trace. `false`: it stays in force.
    async fn end(&self, sweep: Arc<Sweep>, worked: Result<bool, CatalogError>) -> bool {
        let is_made = match worked {
            _ if self.refused.load(Relaxed) > 0 => false,
            Ok(true) => {
                self.fills.store.end_sweeps(std::slice::from_ref(&sweep));
                true
            }
            Ok(false) => self.fills.store.end_by_walk(sweep).await,
            Err(error) => {
                tracing::warn!(%error, "the catalogue does not tell what a flush covers: everything that is stored is looked at");
                self.fills.store.end_by_walk(sweep).await
            }
        };
        if !is_made {
            say_refused(&self.flush);
        }
        is_made
    }

    /// All of it; `told` is told as soon as what is listed is done.
    async fn make(self: Arc<Self>, told: oneshot::Sender<Result<(), CatalogError>>) {
        let worked = self.work().await;
        // Whoever asked may be gone.
        let _ = told.send(worked.clone().map(|_| ()));
        let Some(sweep) = &self.sweep else { return };
        let (filter, fills) = (&self.request.filter, &self.fills);
        if self.request.mode == FlushMode::Delete && is_everything(filter) && !fills.catalog.is_shared() {
            let (fills, remote, at) = (Arc::clone(fills), filter.remote.clone(), self.flush.at);
            tokio::spawn(async move { fills.sweep_bucket(remote, at).await });
        }
        if !self.end(Arc::clone(sweep), worked).await {
            return;
        }
        fills.shared.ledger.note(&self.flush, false).await;
        let answer = *self.answer.lock();
        tracing::info!(matched = answer.matched, bytes = answer.bytes, "a flush was made");
    }
}

/// The disk refuses some of what `flush` covers.
fn say_refused(flush: &Flush) {
    tracing::error!(
        request = %flush.request,
        "some of what was flushed can neither be removed nor changed on the disk, or cannot be read now: it is not served, \
         but takes its space; see to the disk, then flush it again or restart"
    );
}

/// Whether it names no part of a remote.
fn is_everything(filter: &Filter) -> bool {
    filter.class.is_none() && filter.prefix.is_none() && filter.pattern.is_none()
}

/// Whether a filter means all that there is.
fn is_all(filter: &Filter) -> bool {
    is_everything(filter) && filter.remote.is_none()
}

fn key_of(listed: &Record) -> Key {
    Key::new(&listed.remote, &listed.path, None, &listed.form)
}

impl Fills {
    /// Flushes what `request` matches, on every node. From the answer on none of it is served; when there is much of it, it is
    /// removed in the background.
    ///
    /// # Errors
    /// The catalogue does not answer. What was flushed until then stays flushed.
    pub async fn flush(
        self: &Arc<Self>,
        views: &Arc<Views>,
        config: &Arc<Config>,
        request: &FlushRequest,
    ) -> Result<FlushAnswer, FlushError> {
        let filter = &request.filter;
        let drained = self.catalog.drain().await;
        if let Err(error) = &drained
            && (!is_everything(filter) || request.dry_run)
        {
            return Err(FlushError::NeedsCatalogue(error.clone()));
        }
        let flush = Flush::new(request.to_json());
        let sweep = match request.dry_run {
            true => None,
            false => Some(self.begin_flush(config, request, &flush).await),
        };
        if drained.is_err() {
            let (answer, refused) = self.flush_without_catalogue(filter, request.mode).await;
            if refused > 0 {
                say_refused(&flush);
            } else {
                if let Some(sweep) = sweep {
                    self.store.end_sweeps(&[sweep]);
                }
                self.shared.ledger.note(&flush, false).await;
            }
            tracing::info!(
                matched = answer.matched,
                bytes = answer.bytes,
                "a flush was made without the catalogue"
            );
            return Ok(answer);
        }
        let (config, any_class) = (Arc::clone(config), any_class(filter));
        let making = Arc::new(Making {
            fills: Arc::clone(self),
            views: Some(Arc::clone(views)),
            covers: Box::new(move |key| covered(&config, &any_class, key)),
            request: request.clone(),
            flush,
            sweep,
            answer: Mutex::new(FlushAnswer {
                dry_run: request.dry_run,
                ..FlushAnswer::default()
            }),
            refused: AtomicU64::new(0),
        });
        let (told, worked) = oneshot::channel();
        tokio::spawn(Arc::clone(&making).make(told));
        // A trial does nothing but count.
        let patience = if request.dry_run { PATIENCE } else { ANSWERED_WITHIN };
        let made = tokio::time::timeout(patience, worked).await;
        let answer = *making.answer.lock();
        match made {
            Ok(Ok(Err(error))) => Err(error.into()),
            Ok(_) => Ok(answer),
            Err(_) => Ok(FlushAnswer {
                unfinished: true,
                ..answer
            }),
        }
    }

    /// From now on nothing that is covered is served here, and the other nodes are told.
    async fn begin_flush(self: &Arc<Self>, config: &Arc<Config>, request: &FlushRequest, flush: &Flush) -> Arc<Sweep> {
        self.shared.ledger.note(flush, true).await;
        let (config, filter) = (Arc::clone(config), request.filter.clone());
        let covers = move |key: &str| covered(&config, &filter, key);
        let covers: Arc<dyn Fn(&str) -> bool + Send + Sync> = Arc::new(covers);
        let judge = Arc::clone(&covers);
        let sweep = Arc::new(Sweep {
            // What was stored in this very millisecond, too.
            at: flush.at + 1,
            covers: Box::new(move |key| judge(key)),
            expire: request.mode == FlushMode::Expire,
            gone: Box::new(|_| {}),
        });
        self.store.begin_sweep(&sweep);
        match &self.shared.fleet {
            Some(fleet) => fleet.flush(flush.clone()).await,
            None => self.shared.ledger.remember(flush.clone()),
        }
        let fills = Arc::clone(self);
        // The task fails only when the process ends.
        let _ = tokio::task::spawn_blocking(move || fills.shared.ledger.catch_up()).await;
        for key in self.store.growing_keys() {
            match (covers(&key.text), request.mode) {
                (true, FlushMode::Delete) => {
                    self.store.forsake(&key.hash);
                    self.release(&key.hash);
                }
                (true, FlushMode::Expire) => drop(self.store.expire(key.hash).await),
                (false, _) => {}
            }
        }
        self.forget(&*covers);
        sweep
    }

    /// Makes, on `runtime`, what an earlier process of this node has begun. Nothing of it is served from now on.
    pub fn finish_flushes(self: &Arc<Self>, runtime: &Handle) {
        self.shared.ledger.catch_up();
        for flush in self.shared.ledger.begun() {
            tracing::info!(request = %flush.request, "a flush that was under way when this node stopped is made");
            if self.shared.fleet.is_none() {
                // Before anything is looked for: the bucket may still have what was flushed.
                self.shared.ledger.remember(flush.clone());
            }
            self.make_again(flush, runtime, true);
        }
    }

    /// Removes from the bucket what was flushed before `at` and this node's catalogue does not list: other nodes put it
    /// there. It is found no more already; this frees the space. `false`: the bucket was not swept to its end.
    async fn sweep_bucket(&self, remote: Option<String>, at: Millis) -> bool {
        let Some(bucket) = &self.shared.bucket else {
            return true;
        };
        let mut next = None;
        let mut removed = 0_u64;
        loop {
            let page = match bucket.list(next).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, removed, "the bucket is not swept to its end: what was flushed takes its space until the next flush");
                    return false;
                }
            };
            let of_remote = |object: &str| {
                let rest = object.strip_prefix(PREFIX);
                remote
                    .as_ref()
                    .is_none_or(|remote| rest.is_some_and(|rest| rest.starts_with(remote.as_str())))
            };
            let objects = page
                .objects
                .into_iter()
                .map(|listed| listed.object)
                .filter(|object| of_remote(object));
            let found = stream::iter(objects.map(|object| {
                let bucket = Arc::clone(bucket);
                async move { bucket.describe(&object).await }
            }));
            let mut found = found.buffer_unordered(SWEEPERS);
            while let Some(found) = found.next().await {
                let Ok(Some(copy)) = found else { continue };
                if copy.head.stored_at < at && self.shared.ledger.is_flushed(&copy.key, copy.head.stored_at) {
                    let bucket = Arc::clone(bucket);
                    let removing = tokio::task::spawn_blocking(move || bucket.remove_older(&copy.key, at));
                    // The task fails only when the process ends.
                    let _ = removing.await;
                    removed += 1;
                }
            }
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        tracing::info!(removed, "the bucket was swept");
        true
    }

    /// Makes, on `runtime`, a flush that another node made. Nothing of it is served from now on.
    pub fn make_elsewhere(self: &Arc<Self>, flush: Flush, runtime: &Handle) {
        // What a shared catalogue lists is struck by that node.
        self.make_again(flush, runtime, !self.catalog.is_shared());
    }

    /// Makes a flush that another node, or an earlier process of this one, has begun: by what is listed if `by_list`.
    /// Blocks for as long as its pattern takes.
    fn make_again(self: &Arc<Self>, flush: Flush, runtime: &Handle, by_list: bool) {
        self.shared.ledger.catch_up();
        let request = FlushRequest::parse(flush.request.to_string().as_bytes());
        let (Some((covers, expire)), Ok(request)) = (self.shared.ledger.read(&flush), request) else {
            tracing::warn!(request = %flush.request, "another node made a flush that is not understood here; is it of a later version?");
            return;
        };
        let any_class = FlushRequest {
            filter: any_class(&request.filter),
            ..request.clone()
        };
        let any_class = Flush::new(any_class.to_json());
        let Some((covers_any_class, _)) = self.shared.ledger.read(&any_class) else {
            return;
        };
        let covers: Arc<dyn Fn(&str) -> bool + Send + Sync> = covers.into();
        self.forget(&*covers);
        let outdated = self.store.growing_keys().into_iter().filter(|key| covers(&key.text));
        for key in outdated.filter(|_| !expire) {
            self.release(&key.hash);
        }
        let sweep = Arc::new(Sweep {
            at: flush.at,
            covers: Box::new(move |key| covers(key)),
            expire,
            gone: self.striking(expire),
        });
        self.store.begin_sweep(&sweep);
        let making = Arc::new(Making {
            fills: Arc::clone(self),
            views: None,
            covers: covers_any_class,
            request,
            flush,
            sweep: Some(Arc::clone(&sweep)),
            answer: Mutex::default(),
            refused: AtomicU64::new(0),
        });
        runtime.spawn(async move {
            let (fills, flush) = (&making.fills, &making.flush);
            fills.shared.ledger.note(flush, true).await;
            let worked = if by_list { making.work().await } else { Ok(false) };
            let mut is_made = making.end(sweep, worked).await;
            // Only an earlier process of this node makes one that no fleet remembers.
            if fills.shared.fleet.is_none() && !expire {
                is_made &= fills.sweep_bucket(None, flush.at).await;
            }
            if !is_made {
                return;
            }
            fills.shared.ledger.note(flush, false).await;
            tracing::info!(request = %flush.request, "a flush of another node was made here");
        });
    }

    /// Tells the catalogue, where it is this node's own, of what a sweep finds on the disk.
    fn striking(&self, expire: bool) -> Box<dyn Fn(&str) + Send + Sync> {
        let (catalog, store) = (self.catalog.clone(), self.store);
        Box::new(move |key| {
            let key = Key::from_text(key);
            let Parts { remote, path, form } = key.parts();
            if key.parts().is_view() || catalog.is_shared() {
                return;
            }
            match expire {
                true => catalog.record(expired(remote.to_owned(), path.to_owned(), form.to_owned())),
                false => relist::strike(&catalog, store, &key.hash, record::removed(&key)),
            }
        })
    }

    /// By walking the disk tier. Also of how much the disk refused it.
    async fn flush_without_catalogue(&self, filter: &Filter, mode: FlushMode) -> (FlushAnswer, u64) {
        let remote = filter.remote.clone();
        let matches = move |key: &str| remote.as_ref().is_none_or(|remote| Parts::of(key).remote == remote);
        self.forget(&matches);
        let Walked { count, bytes, refused } = match mode {
            FlushMode::Delete => self.store.remove_where(matches).await,
            FlushMode::Expire => self.store.expire_where(matches).await,
        };
        let (deleted, expired) = if mode == FlushMode::Delete {
            (count, 0)
        } else {
            (0, count)
        };
        let answer = FlushAnswer {
            matched: count + refused,
            deleted,
            expired,
            bytes,
            ..FlushAnswer::default()
        };
        (answer, refused)
    }
}

/// The question for both classes: what is listed has the class that it had then.
fn any_class(filter: &Filter) -> Filter {
    Filter {
        class: None,
        ..filter.clone()
    }
}

fn expired(remote: String, path: String, form: String) -> Event {
    Event::Refreshed {
        remote,
        path,
        form,
        fresh_until: Some(i64::try_from(now_ms() / 1000).unwrap_or(0)),
        at: crate::catalog::unix_now(),
    }
}

/// Whether the filter covers what is stored, or would be, under `key`.
pub fn covered(config: &Config, filter: &Filter, key: &str) -> bool {
    let parts = Parts::of(key);
    if parts.is_local() {
        return false;
    }
    let Parts { remote, path, .. } = parts;
    let Some(configured) = config.remotes.get(remote) else {
        return filter.remote.is_none();
    };
    if configured.kind == RemoteType::Local {
        return false;
    }
    let (bare, query) = path
        .split_once('?')
        .map_or((path, None), |(bare, query)| (bare, Some(query)));
    let asset = path::parse(bare.as_bytes(), query).ok();
    let asset = asset.and_then(|path| formats::asset(configured, path, None));
    let class = match asset.as_ref().and_then(policy::classify).map(|policy| policy.class) {
        Some(Class::Immutable) => Listed::Immutable,
        // Stored under its digest alone, for all names that lead to it.
        None if bare
            .rsplit('/')
            .next()
            .is_some_and(|last| Expected::parse(last).is_some()) =>
        {
            Listed::Immutable
        }
        _ => Listed::Mutable,
    };
    filter.covers(remote, class, path)
}
