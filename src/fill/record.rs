//! Objects as the catalogue knows them.

use crate::cache::{FOR_EVER, Key, Millis, Object, hex};
use crate::catalog::{Class as Listed, Event, Record, unix_now};
use crate::formats::Class;

fn listed(class: Class) -> Listed {
    match class {
        Class::Immutable => Listed::Immutable,
        Class::Mutable => Listed::Mutable,
    }
}

fn seconds(until: Millis) -> Option<i64> {
    (until != FOR_EVER).then(|| i64::try_from(until / 1000).unwrap_or(i64::MAX))
}

/// A fill was admitted.
pub fn stored(object: &Object, class: Class) -> Option<Event> {
    let finished = object.finished()?;
    let (remote, path, form) = object.key.parts();
    let published = object
        .head
        .last_modified()
        .and_then(|date| httpdate::parse_http_date(date).ok());
    // A name is listed with what it stands for, whose bytes are listed by themselves.
    let digest = match &object.head.stands_for {
        Some(referent) => referent.digest.clone(),
        None => format!("sha256:{}", hex(&finished.sha256)),
    };
    Some(Event::Stored {
        object: Box::new(Record {
            remote: remote.to_owned(),
            path: path.to_owned(),
            form: form.to_owned(),
            class: listed(class),
            size: finished.length,
            digest,
            content_type: object.head.content_type().to_owned(),
            etag: object.head.etag().map(str::to_owned),
            last_modified: object.head.last_modified().map(str::to_owned),
            published_at: published
                .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
                .and_then(|since| i64::try_from(since.as_secs()).ok()),
            first_seen: unix_now(),
            last_seen: unix_now(),
            hits: 0,
            fresh_until: seconds(object.fresh.fresh_until()),
            key: hex(&object.key.hash),
        }),
    })
}

/// Its freshness changed.
pub fn refreshed(object: &Object) -> Event {
    let (remote, path, form) = object.key.parts();
    Event::Refreshed {
        remote: remote.to_owned(),
        path: path.to_owned(),
        form: form.to_owned(),
        fresh_until: seconds(object.fresh.fresh_until()),
        at: unix_now(),
    }
}

/// It is no longer stored.
pub fn removed(key: &Key) -> Event {
    let (remote, path, form) = key.parts();
    Event::Removed {
        remote: remote.to_owned(),
        path: path.to_owned(),
        form: form.to_owned(),
    }
}
