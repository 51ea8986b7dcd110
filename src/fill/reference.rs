//! Names that stand for content with a digest (a registry's tags). A flight for one brings not the content but an object
//! without a body that says which content it is ([`crate::cache::Referent`]); the content itself is stored under its
//! digest, where every name that leads to it finds it.
//!
//! What is known is asked about by HEAD, which registries do not count as a download. Only where the answer names content
//! that is not stored, or does not say, the content is fetched by the name, and verified before anything is believed.

use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::decoded::{GZIP, is_gzip};
use super::{Answer, Fills, How, Outcome, Wanted};
use crate::cache::{Aside, Expected, Finish, Head, Millis, Object, Reader, Referent, freshness_until, now_ms};
use crate::gunzip::gunzip;
use crate::headers;
use crate::policy;
use crate::status::may_refuse_head;
use crate::upstream::Failure;

/// Registries take manifests of 4 MiB (distribution-spec, "Pushing Manifests"), some a little more.
pub const MAX_CONTENT: usize = 16 << 20;

impl Fills {
    /// Where `reference` leads, by upstream's word.
    pub(super) async fn follow(
        self: &Arc<Self>,
        wanted: &Wanted,
        method: &Method,
        previous: Option<Arc<Object>>,
    ) -> Outcome {
        let began = now_ms();
        if previous.is_some() || *method == Method::HEAD {
            match self.obtain_aside(wanted.aside(Aside::Asking), Method::HEAD).await {
                Outcome::Answer(answer) if answer.reason.is_none() && answer.status == 200 => {
                    let named = referent_of(wanted, &answer.headers);
                    let enough = match &named {
                        None => false,
                        Some(_) if *method == Method::HEAD => true,
                        Some(referent) => self.has_content(wanted, &referent.digest).await,
                    };
                    if let (Some(referent), true) = (named, enough) {
                        let how = match &previous {
                            Some(_) => How::Revalidated(200),
                            None => How::Fetched,
                        };
                        return self
                            .point(wanted, previous, (referent, &answer.headers), how, (false, began))
                            .await;
                    }
                }
                // Not answered to a HEAD, or not in full.
                Outcome::Answer(answer) if answer.reason.is_none() && may_refuse_head(answer.status) => {}
                other => return other,
            }
        }
        let key = wanted.aside(Aside::Arriving).key.hash;
        let arrived = match self.obtain_aside(wanted.aside(Aside::Arriving), Method::GET).await {
            Outcome::Object(object, How::Fetched) => object,
            other => return other,
        };
        let outcome = match self.verified(wanted, &arrived).await {
            Ok((digest, body)) => {
                let mut kept = arrived.head.headers.clone();
                for name in [header::CONTENT_ENCODING, header::TRANSFER_ENCODING] {
                    kept.remove(name);
                }
                let digest = digest.to_string();
                let referent = Referent {
                    size: body.len() as u64,
                    digest: digest.clone(),
                };
                name_digest(wanted, &mut kept, &digest);
                if !kept.contains_key(header::ETAG) {
                    kept.insert(header::ETAG, headers::value(&format!("\"{digest}\"")));
                }
                let is_flushed = !arrived.is_kept();
                self.keep_content(wanted, &arrived, (&digest, &kept), body).await;
                self.point(wanted, previous, (referent, &kept), How::Fetched, (is_flushed, began))
                    .await
            }
            Err(failure) if failure.unreachable => self.after_failure(wanted, previous, failure).await,
            Err(failure) => Outcome::Answer(Arc::new(Answer::failure(&failure))),
        };
        self.store.remove(key).await;
        outcome
    }

    /// A flight within a flight. The type is spelled out because the compiler cannot infer it in a circle.
    pub(super) fn obtain_aside(
        self: &Arc<Self>,
        wanted: Wanted,
        method: Method,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
        Box::pin(async move { self.obtain(wanted, method).await.0 })
    }

    /// The body that arrived by a name, whole, decoded, and what its header says of it; and its digest.
    async fn verified(&self, wanted: &Wanted, arrived: &Arc<Object>) -> Result<(Expected, Vec<u8>), Failure> {
        let refused = |reason: &str| Failure {
            status: 502,
            reason: reason.to_owned(),
            unreachable: false,
        };
        let body = match (
            arrived.settled().await,
            Reader::new(Arc::clone(arrived)).collect(MAX_CONTENT).await,
        ) {
            (true, Ok(body)) => body,
            (true, Err(_)) => return Err(refused("upstream's manifest is longer than any registry takes")),
            (false, _) => return Err(Failure::broken_off()),
        };
        let (arrived, field) = (Arc::clone(arrived), wanted.asset.digest_field.clone());
        // It may be long: others are waiting for this thread.
        let reading = tokio::task::spawn_blocking(move || content(&arrived.head, field.as_ref(), body));
        match reading.await {
            Ok(Ok(content)) => Ok(content),
            Ok(Err(Useless::Because(reason))) => Err(refused(reason)),
            Ok(Err(Useless::OtherThan(digest))) => {
                self.metrics.wrong_digest(&wanted.remote().name);
                let reason = format!("upstream's manifest has another digest than {digest}, which its header names");
                tracing::warn!(remote = %wanted.remote().name, path = %wanted.asset.path.encoded, %reason, "a manifest was not admitted");
                Err(refused(&reason))
            }
            // Only when the process ends.
            Err(_) => Err(Failure::broken_off()),
        }
    }

    async fn has_content(&self, wanted: &Wanted, digest: &str) -> bool {
        match wanted.asset.content(digest) {
            Some(content) => self.store.open_object(&content.key()).await.is_some(),
            None => false,
        }
    }

    /// Stores what arrived by a name under its digest. Where it cannot be stored it is fetched again when it is read.
    async fn keep_content(
        self: &Arc<Self>,
        wanted: &Wanted,
        arrived: &Object,
        (digest, kept): (&str, &HeaderMap),
        body: Vec<u8>,
    ) {
        let Some(content) = wanted.asset.content(digest) else {
            return;
        };
        let key = content.key();
        if self.store.open_object(&key).await.is_some() {
            return;
        }
        let policy = policy::of_content(wanted.remote());
        let now = now_ms();
        let freshness = (policy.class, now, freshness_until(policy.class, now, policy.ttl));
        let head = Head {
            content_length: Some(body.len() as u64),
            headers: kept.clone(),
            ..arrived.head.clone()
        };
        let created = self
            .store
            .create(key, head, freshness, None, Expected::parse(digest), true);
        let Ok(mut writer) = created.await else { return };
        if !arrived.is_kept() {
            writer.doom();
        }
        if writer.write(body.into()).await.is_err() {
            return;
        }
        if let Finish::Admitted(object) = writer.finish().await {
            self.note_stored(&object, policy.class);
        }
    }

    /// Notes that the name stands for `referent` now.
    async fn point(
        self: &Arc<Self>,
        wanted: &Wanted,
        previous: Option<Arc<Object>>,
        (referent, kept): (Referent, &HeaderMap),
        how: How,
        (is_flushed, began): (bool, Millis),
    ) -> Outcome {
        // A HEAD and a GET for one name may be under way at once, and the later to end may have begun earlier.
        if let Some(newer) = self.store.stored(&wanted.key).await
            && newer.fresh.checked_at() > began
            && newer.head.stands_for.is_some()
        {
            return Outcome::Object(newer, how);
        }
        let previous = previous.filter(|previous| previous.head.stands_for.as_ref() == Some(&referent));
        if let Some(previous) = previous {
            self.refresh(wanted, &previous, began).await;
            return Outcome::Object(previous, how);
        }
        let mut kept = kept.clone();
        kept.remove(header::CONTENT_LENGTH);
        name_digest(wanted, &mut kept, &referent.digest);
        if !kept.contains_key(header::ETAG) {
            kept.insert(header::ETAG, headers::value(&format!("\"{}\"", referent.digest)));
        }
        // A flush that came while upstream was asked is later than what upstream said.
        let is_flushed = is_flushed || self.shared.ledger.flushed(&wanted.key, began, began).is_some();
        let now = now_ms();
        let class = wanted.policy.class;
        let freshness = (class, now, freshness_until(class, now, wanted.policy.ttl));
        let head = Head {
            url: wanted.url.to_string(),
            headers: kept,
            content_length: Some(0),
            stored_at: now,
            unframed: false,
            ranges: false,
            stands_for: Some(referent),
        };
        let writer = match self
            .store
            .create(wanted.key.clone(), head, freshness, None, None, true)
            .await
        {
            Ok(writer) => writer,
            Err(why) => {
                let failure = Failure {
                    status: 503,
                    reason: format!("there is no space to note where this tag leads: {why}"),
                    unreachable: false,
                };
                return Outcome::Answer(Arc::new(Answer::failure(&failure)));
            }
        };
        let pointer = Arc::clone(writer.object());
        if is_flushed {
            writer.doom();
        }
        match writer.finish().await {
            Finish::Admitted(object) => {
                self.note_stored(&object, class);
                Outcome::Object(object, how)
            }
            // Not kept, and right all the same.
            _ => Outcome::Object(pointer, how),
        }
    }
}

/// Where `headers` name the digest of what the name stands for.
fn digest_named<'h>(wanted: &Wanted, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
    headers.get(wanted.asset.digest_field.as_ref()?)
}

/// Lets `headers` name the digest of what the name stands for.
fn name_digest(wanted: &Wanted, headers: &mut HeaderMap, digest: &str) {
    if let Some(field) = &wanted.asset.digest_field {
        headers.insert(field.clone(), headers::value(digest));
    }
}

/// Why what arrived by a name is no content.
enum Useless {
    Because(&'static str),
    /// Its header names this digest.
    OtherThan(Expected),
}

/// The content of a whole body with this header, and its digest, which `field` may name. Decodes and hashes up to [`MAX_CONTENT`] bytes.
fn content(head: &Head, field: Option<&HeaderName>, body: Vec<u8>) -> Result<(Expected, Vec<u8>), Useless> {
    let body = match head.content_encoding() {
        Some(coding) if !is_gzip(coding) => {
            return Err(Useless::Because(
                "upstream sent its manifest in a coding that nobody asked for",
            ));
        }
        // Unasked, and not always said; a digest is that of the content, not of its coding.
        _ if body.starts_with(&GZIP) => {
            let damaged = "the coding of upstream's manifest is damaged, or hides too much";
            gunzip(&body, MAX_CONTENT).ok_or(Useless::Because(damaged))?
        }
        _ => body,
    };
    if head.content_type().starts_with("text/html") {
        return Err(Useless::Because("upstream sent a page, not a manifest"));
    }
    let said = field.and_then(|field| head.headers.get(field));
    let said = said.and_then(|value| Expected::parse(value.to_str().ok()?.trim()));
    match said {
        Some(digest) if digest.is_of(&body) => Ok((digest, body)),
        None => Ok((Expected::sha256(&body), body)),
        Some(digest) => Err(Useless::OtherThan(digest)),
    }
}

/// What the answer to a HEAD says that the name stands for, if it says all of it.
fn referent_of(wanted: &Wanted, headers: &HeaderMap) -> Option<Referent> {
    let text = |value: Option<&HeaderValue>| {
        value
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
            .map(str::to_owned)
    };
    let digest = text(digest_named(wanted, headers))?;
    Expected::parse(&digest)?;
    headers.get(header::CONTENT_TYPE)?;
    let size = text(headers.get(header::CONTENT_LENGTH))?.parse().ok()?;
    // A length of a coded body is not the content's.
    (!headers.contains_key(header::CONTENT_ENCODING)).then_some(Referent { digest, size })
}
