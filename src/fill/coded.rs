//! Content with a digest that upstream sends in a coding that nobody asked for. The digest is that of the content; but
//! many a server names as coding what is the content's own format (a layer is a gzip file). Which of the two it is only the
//! digest tells, so nothing is shown before the end.

use std::sync::Arc;

use http::{Method, header};

use super::decoded::{has_gzip_bytes, is_gzip};
use super::{Answer, Fills, How, Outcome, Wanted};
use crate::cache::{Aside, Finish, Head, Object, Reader, Writer, freshness_until, now_ms};
use crate::gunzip::Gunzip;
use crate::upstream::Failure;

/// A decoder's output is handed on in pieces of about this.
const PIECE: usize = 64 << 10;

impl Fills {
    /// Fetches `wanted` aside, as it comes, and keeps what has the right digest: the bytes, or what they decode to.
    pub(super) async fn fetch_coded(self: &Arc<Self>, wanted: &Wanted, previous: Option<Arc<Object>>) -> Outcome {
        let aside = Wanted {
            expected: None,
            ..wanted.aside(Aside::Coded)
        };
        let hash = aside.key.hash;
        let arrived = match self.obtain_aside(aside, Method::GET).await {
            Outcome::Object(object, How::Fetched) => object,
            other => return other,
        };
        if !arrived.settled().await {
            return self.after_failure(wanted, previous, Failure::broken_off()).await;
        }
        let kept = self.keep_right(wanted, &arrived).await;
        self.store.remove(hash).await;
        match kept {
            Ok(object) => Outcome::Object(object, How::Fetched),
            Err(reason) => {
                tracing::warn!(key = %wanted.key.shown(), %reason, "a transfer from upstream failed");
                self.metrics.fill_failed(&wanted.remote().name);
                let failure = Failure {
                    status: 502,
                    reason,
                    unreachable: false,
                };
                Outcome::Answer(Arc::new(Answer::failure(&failure)))
            }
        }
    }

    async fn keep_right(self: &Arc<Self>, wanted: &Wanted, arrived: &Arc<Object>) -> Result<Arc<Object>, String> {
        let Some(expected) = &wanted.expected else {
            return Err("a digest is wanted and none is known".to_owned());
        };
        let broken = |error: &dyn std::fmt::Display| format!("what upstream sent could not be read: {error}");
        let mut verifier = expected.verifier();
        let mut reader = Reader::new(Arc::clone(arrived));
        while let Some(piece) = reader.next().await.map_err(|error| broken(&error))? {
            verifier.update(&piece);
            tokio::task::yield_now().await;
        }
        let verified = verifier.end();
        let as_it_came = verified.is_ok();
        let gzip = arrived.head.content_encoding().is_none_or(is_gzip) && has_gzip_bytes(arrived).await;
        if let Err(wrong) = verified
            && !gzip
        {
            self.note_wrong(wanted);
            return Err(format!("of upstream's content: {wrong}"));
        }
        let mut headers = arrived.head.headers.clone();
        headers.remove(header::CONTENT_ENCODING);
        for (name, value) in &wanted.says() {
            headers.insert(name.clone(), value.clone());
        }
        let head = Head {
            headers,
            content_length: arrived.length().filter(|_| as_it_came),
            ranges: false,
            ..arrived.head.clone()
        };
        let (class, now) = (wanted.policy.class, now_ms());
        let freshness = (class, now, freshness_until(class, now, wanted.policy.ttl));
        let writer = self
            .store
            .create(wanted.key.clone(), head, freshness, None, Some(expected.clone()), true)
            .await;
        let mut writer = writer.map_err(|error| error.to_string())?;
        if let Some(before) = wanted.before {
            writer.must_stay(before);
        }
        let object = Arc::clone(writer.object());
        copy(arrived, &mut writer, !as_it_came).await?;
        if !arrived.is_kept() {
            writer.doom();
        }
        match writer.finish().await {
            Finish::Admitted(object) => {
                self.note_stored(&object, class);
                Ok(object)
            }
            Finish::Same(object) => Ok(object),
            // Whole and right, only not kept.
            Finish::Dropped => Ok(object),
            Finish::Wrong(reason) => {
                self.note_wrong(wanted);
                Err(reason)
            }
            Finish::Changed(reason) => {
                self.metrics.changed(&wanted.remote().name);
                Err(reason)
            }
            Finish::Failed(reason) => Err(reason),
        }
    }
}

async fn copy(from: &Arc<Object>, to: &mut Writer, decoded: bool) -> Result<(), String> {
    let mut decoder = decoded.then(Gunzip::new);
    let mut reader = Reader::new(Arc::clone(from));
    let damaged = |error: std::io::Error| format!("upstream's coding is damaged: {error}");
    let written = |error: std::io::Error| format!("the content could not be kept: {error}");
    while let Some(piece) = reader.next().await.map_err(|error| error.to_string())? {
        let Some(decoder) = &mut decoder else {
            to.write(piece).await.map_err(written)?;
            continue;
        };
        // In small steps: a bomb's next kilobytes can be megabytes. What it may come to is the disk's bound.
        for step in piece.chunks(1 << 10) {
            decoder.write(step).map_err(damaged)?;
            if decoder.len() >= PIECE {
                to.write(decoder.take().into()).await.map_err(written)?;
            }
        }
        tokio::task::yield_now().await;
    }
    if let Some(mut decoder) = decoder {
        decoder.end().map_err(damaged)?;
        to.write(decoder.take().into()).await.map_err(written)?;
    }
    Ok(())
}
