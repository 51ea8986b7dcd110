//! The store as Pingora's cache storage: what its state machine looks up, revalidates and fills goes through here, and
//! clients are served from the same objects.

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora_cache::key::CacheHashKey;
use pingora_cache::storage::{HandleHit, HandleMiss, MissFinishType};
use pingora_cache::trace::SpanHandle;
use pingora_cache::{CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use tokio::sync::oneshot;

use super::Class;
use super::expected::Expected;
use super::writer::{Finish, Writer};
use super::{Head, Key, Millis, Object, Reader, Store};
use crate::deadline::Deadline;

/// What a fill brings along for the storage; it rides in the extensions of key and meta.
#[derive(Debug)]
pub struct FillSpec {
    pub key: Key,
    pub class: Class,
    pub expected: Option<Expected>,
    /// The SHA-256 that it had before, where it must still have that.
    pub before: Option<[u8; 32]>,
    /// What is stored now, expired.
    pub previous: Option<Arc<Object>>,
    /// The object that grows, once the header has arrived.
    pub object: OnceLock<Arc<Object>>,
    /// Upstream's deadline, which rests while it is the disk that takes its time.
    pub deadline: Arc<Deadline>,
    /// A document that is rewritten here: it may be held in memory where it cannot be stored.
    pub document: bool,
    /// Why nothing could be stored.
    pub refused: OnceLock<String>,
    /// Told how the body ended.
    pub done: Mutex<Option<oneshot::Sender<Finish>>>,
}

/// What the response's header says of the object to be stored; rides in the meta's extensions.
#[derive(Debug, Clone)]
pub struct FillHead {
    pub spec: Arc<FillSpec>,
    pub head: Head,
    pub checked_at: Millis,
    pub fresh_until: Millis,
}

/// The cache key that Pingora sees for `key`: the same hash, not computed again.
pub fn cache_key(spec: &Arc<FillSpec>) -> CacheKey {
    let mut key = CacheKey::new(spec.key.text.as_bytes().to_vec(), "");
    key.set_primary_bin_override(spec.key.hash);
    key.extensions.insert(Arc::clone(spec));
    key
}

fn storage_error(context: &'static str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Box<Error> {
    Error::because(ErrorType::InternalError, context, cause)
}

fn time(millis: Millis) -> SystemTime {
    // Clamped: `SystemTime` cannot hold "for ever".
    UNIX_EPOCH + Duration::from_millis(millis.min(253_402_300_799_000))
}

fn meta_of(object: &Object) -> Result<CacheMeta> {
    let mut header = ResponseHeader::build(200, Some(object.head.headers.len()))?;
    for (name, value) in &object.head.headers {
        header.append_header(name.clone(), value.clone())?;
    }
    Ok(CacheMeta::new(
        time(object.fresh.fresh_until()),
        time(object.head.stored_at),
        0,
        0,
        header,
    ))
}

#[async_trait]
impl Storage for Store {
    /// Only what is stored whole: the one who asks is a fill, and it asks in order to revalidate.
    async fn lookup(&'static self, key: &CacheKey, _: &SpanHandle) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(object) = key
            .extensions
            .get::<Arc<FillSpec>>()
            .and_then(|spec| spec.previous.clone())
        else {
            return Ok(None);
        };
        let meta = meta_of(&object)?;
        Ok(Some((
            meta,
            Box::new(Hit {
                reader: Reader::new(object),
            }),
        )))
    }

    async fn lookup_streaming_write(
        &'static self,
        key: &CacheKey,
        tag: Option<&[u8]>,
        trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(tag) = tag else {
            return self.lookup(key, trace).await;
        };
        match self.growing(&key.combined_bin()) {
            Some(object) if object.id.to_be_bytes() == tag => {
                let meta = meta_of(&object)?;
                Ok(Some((
                    meta,
                    Box::new(Hit {
                        reader: Reader::new(object),
                    }),
                )))
            }
            // A flush took it out of sight: an error here makes the response pass, `None` would panic in Pingora.
            _ => Err(Error::explain(ErrorType::InternalError, "the growing object is gone")),
        }
    }

    async fn get_miss_handler(&'static self, _: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<MissHandler> {
        let Some(fill) = meta.extensions().get::<FillHead>() else {
            return Err(Error::explain(
                ErrorType::InternalError,
                "a fill without its particulars",
            ));
        };
        let spec = &fill.spec;
        let freshness = (spec.class, fill.checked_at, fill.fresh_until);
        spec.deadline.clear();
        let created = self.create(
            spec.key.clone(),
            fill.head.clone(),
            freshness,
            spec.previous.clone(),
            spec.expected.clone(),
            spec.document,
        );
        let created = created.await;
        spec.deadline.resume();
        match created {
            Ok(mut writer) => {
                if let Some(before) = spec.before {
                    writer.must_stay(before);
                }
                let _ = spec.object.set(Arc::clone(writer.object()));
                let tag = writer.object().id.to_be_bytes();
                Ok(Box::new(Miss {
                    writer: Some(writer),
                    spec: Arc::clone(spec),
                    tag,
                }))
            }
            Err(error) => {
                let _ = spec.refused.set(error.to_string());
                Err(storage_error("the answer cannot be stored", error))
            }
        }
    }

    async fn purge(&'static self, target: PurgeTarget<'_>, _: PurgeType, _: &SpanHandle) -> Result<PurgeOutcome> {
        Ok(match self.remove(target.key().combined_bin()).await {
            0 => PurgeOutcome::NotFound,
            _ => PurgeOutcome::Purged(None),
        })
    }

    async fn expire(&'static self, target: PurgeTarget<'_>, _: &SpanHandle) -> Result<PurgeOutcome> {
        Ok(match Store::expire(self, target.key().combined_bin()).await {
            true => PurgeOutcome::Expired,
            false => PurgeOutcome::NotFound,
        })
    }

    /// A 304 refreshes the freshness record; whoever started the fill does that, since the lifetime is his to know.
    async fn update_meta(&'static self, _: &CacheKey, _: &CacheMeta, _: &SpanHandle) -> Result<bool> {
        Ok(true)
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

struct Miss {
    writer: Option<Writer>,
    spec: Arc<FillSpec>,
    tag: [u8; 8],
}

#[async_trait]
impl HandleMiss for Miss {
    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        self.spec.deadline.clear();
        if let Err(error) = writer.write(data).await {
            return Err(storage_error("writing to the cache failed", error));
        }
        if !end {
            self.spec.deadline.resume();
        }
        Ok(())
    }

    /// Never an error: Pingora would cut readers off that have all their bytes. What is wrong is told to the fill.
    async fn finish(mut self: Box<Self>) -> Result<MissFinishType> {
        let Some(writer) = self.writer.take() else {
            return Ok(MissFinishType::Created(0));
        };
        self.spec.deadline.clear();
        let finish = writer.finish().await;
        if let Some(done) = self.spec.done.lock().take() {
            let _ = done.send(finish);
        }
        Ok(MissFinishType::Created(0))
    }

    fn streaming_write_tag(&self) -> Option<&[u8]> {
        Some(&self.tag)
    }
}

impl Drop for Miss {
    fn drop(&mut self) {
        if self.writer.take().is_some()
            && let Some(done) = self.spec.done.lock().take()
        {
            let _ = done.send(Finish::Failed("the body did not arrive whole".to_owned()));
        }
    }
}

struct Hit {
    reader: Reader,
}

#[async_trait]
impl HandleHit for Hit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        self.reader
            .next()
            .await
            .map_err(|error| Error::because(ErrorType::ReadError, "reading an object", error))
    }

    async fn finish(self: Box<Self>, _: &'static (dyn Storage + Sync), _: &CacheKey, _: &SpanHandle) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        self.reader.seek(start as u64, end.map_or(u64::MAX, |end| end as u64));
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}
