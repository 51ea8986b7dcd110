//! Objects as the catalogue knows them.

use crate::cache::{Key, Object, Parts};
use crate::catalog::{Event, unix_now};
use crate::formats::Class;
use crate::listing::{entry, seconds};

/// A fill was admitted.
pub fn stored(object: &Object, class: Class) -> Option<Event> {
    let finished = object.finished()?;
    let until = object.fresh.fresh_until();
    let entry = entry(&object.key, &object.head, &finished, class, until, unix_now());
    Some(Event::Stored {
        object: Box::new(entry),
    })
}

/// Its freshness changed.
pub fn refreshed(object: &Object) -> Event {
    let Parts { remote, path, form } = object.key.parts();
    Event::Refreshed {
        remote: remote.to_owned(),
        path: path.to_owned(),
        form: form.to_owned(),
        fresh_until: seconds(object.fresh.fresh_until()),
        at: unix_now(),
    }
}

/// An object is no longer stored.
pub fn removed(key: &Key) -> Event {
    let Parts { remote, path, form } = key.parts();
    Event::Removed {
        remote: remote.to_owned(),
        path: path.to_owned(),
        form: form.to_owned(),
    }
}
