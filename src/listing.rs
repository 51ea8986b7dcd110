//! A stored object as the catalogue lists it.

use crate::cache::{Class, FOR_EVER, Finished, Head, Key, Millis, Parts};
use crate::catalog::{Class as Listed, Record};

/// The entry of an object that is first and last seen at `seen`, in Unix seconds, and was never used.
pub fn entry(key: &Key, head: &Head, finished: &Finished, class: Class, fresh_until: Millis, seen: i64) -> Record {
    let Parts { remote, path, form } = key.parts();
    let published = head
        .last_modified()
        .and_then(|date| httpdate::parse_http_date(date).ok());
    // A name is listed with what it stands for, whose bytes are listed by themselves.
    let digest = match &head.stands_for {
        Some(referent) => referent.digest.clone(),
        None => format!("sha256:{}", hex::encode(finished.sha256)),
    };
    Record {
        remote: remote.to_owned(),
        path: path.to_owned(),
        form: form.to_owned(),
        class: match class {
            Class::Immutable => Listed::Immutable,
            Class::Mutable => Listed::Mutable,
        },
        size: finished.length,
        digest,
        content_type: head.content_type().to_owned(),
        etag: head.etag().map(str::to_owned),
        last_modified: head.last_modified().map(str::to_owned),
        published_at: published
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
            .and_then(|since| i64::try_from(since.as_secs()).ok()),
        first_seen: seen,
        last_seen: seen,
        hits: 0,
        fresh_until: seconds(fresh_until),
        key: hex::encode(key.hash),
    }
}

/// Whether what is listed was uploaded, so that it is not in the cache.
pub fn is_local(record: &Record) -> bool {
    let Record { remote, path, form, .. } = record;
    Parts { remote, path, form }.is_local()
}

/// A stored time in Unix seconds; `None` is for ever.
pub fn seconds(until: Millis) -> Option<i64> {
    (until != FOR_EVER).then(|| i64::try_from(until / 1000).unwrap_or(i64::MAX))
}
