//! What the fleet says of one object, and its encoding: a flat list of fields, the same in the hash of its key and in a
//! message of the bus, so that the scripts need not read anything nested and numbers keep all their digits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::random::random;
use crate::cache::{Class, Millis, class_code, class_of};

/// How long a word of something mutable is kept at least and at most.
pub(super) const MIN_KEPT: Duration = Duration::from_secs(24 * 3600);
const MAX_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// So long the word on something immutable is kept.
const IMMUTABLE_KEPT: Duration = Duration::from_secs(6 * 3600);

/// A process of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Random for each process, so that one that was restarted does not take its predecessor's word for its own.
    pub name: String,
    /// Where other nodes reach it, if they can.
    pub url: Option<String>,
}

impl Node {
    /// This process, under a name of its own.
    pub fn new(url: Option<String>) -> Self {
        Node {
            name: format!("{:016x}", random()),
            url,
        }
    }
}

/// What orders the words that are said of one key: microseconds since 1970 by Redis's clock, at which a fill took its lock.
/// A later fill has a higher one, and a lower one overwrites nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl Fence {
    /// The moment that it stands for.
    pub fn millis(self) -> Millis {
        self.0 / 1000
    }

    /// The fence, taken now, for what a fill without a lock brought and checked then: what others fetched since is newer,
    /// though this is said later.
    pub fn of_what_was_checked(self, at: Millis) -> Fence {
        self.min(Fence(at.saturating_mul(1000)))
    }
}

/// The fleet's word on one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// [`crate::cache::Object::id`] of the body that is current.
    pub id: u64,
    pub class: Class,
    /// When upstream was last known to have this very body.
    pub checked_at: Millis,
    pub fresh_until: Millis,
    /// Upstream's validator.
    pub etag: Option<String>,
    /// The fence of the fill that said so.
    pub generation: u64,
    /// Who has the body.
    pub node: Node,
    /// The body is in the bucket too.
    pub in_bucket: bool,
}

/// Fields by name, as Redis gives them.
pub(super) type Fields = std::collections::HashMap<String, String>;

impl Word {
    /// When whoever said it asked upstream, at the latest that can be told. A fill that took up what another began has a lock
    /// that is younger than what it brought.
    pub fn began(&self) -> Millis {
        Fence(self.generation).millis().min(self.checked_at)
    }

    /// All fields but the three that the scripts compare: `fence`, `checked` and `until`.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("id", self.id.to_string()),
            ("class", class_code(self.class).to_string()),
            ("node", self.node.name.clone()),
            ("bucket", u8::from(self.in_bucket).to_string()),
        ];
        fields.extend(self.etag.clone().map(|etag| ("etag", etag)));
        fields.extend(self.node.url.clone().map(|url| ("url", url)));
        fields
    }

    /// `None`: there is none among these fields, or one that this version does not understand.
    pub(super) fn from_fields(fields: &Fields) -> Option<Self> {
        fn number<T: std::str::FromStr>(fields: &Fields, name: &str) -> Option<T> {
            fields.get(name)?.parse().ok()
        }
        Some(Word {
            id: number(fields, "id")?,
            class: class_of(number(fields, "class")?),
            checked_at: number(fields, "checked")?,
            fresh_until: number(fields, "until")?,
            etag: fields.get("etag").cloned(),
            generation: number(fields, "fence")?,
            node: Node {
                name: fields.get("node")?.clone(),
                url: fields.get("url").cloned(),
            },
            in_bucket: number::<u8>(fields, "bucket")? == 1,
        })
    }

    /// How long Redis keeps it: well past its freshness, since a validator and an id are worth something then, too. Of what
    /// never changes only the news is of use, until it is in the bucket and everybody can find it there.
    pub(super) fn kept(&self) -> Duration {
        match self.class {
            Class::Immutable => IMMUTABLE_KEPT,
            Class::Mutable => {
                let fresh = Duration::from_millis(self.fresh_until.saturating_sub(self.checked_at));
                fresh.saturating_mul(2).clamp(MIN_KEPT, MAX_KEPT)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::{Hash, parse_hash};

    fn encoded(word: &Word) -> Fields {
        let mut fields: Fields = word
            .fields()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let compared = [
            ("fence", word.generation),
            ("checked", word.checked_at),
            ("until", word.fresh_until),
        ];
        fields.extend(compared.map(|(name, number)| (name.to_owned(), number.to_string())));
        fields
    }

    prop_compose! {
        fn records()(
            (id, checked_at, fresh_until, generation) in any::<(u64, u64, u64, u64)>(),
            (immutable, in_bucket) in any::<(bool, bool)>(),
            etag in any::<Option<String>>(),
            name in any::<String>(),
            url in any::<Option<String>>(),
        ) -> Word {
            let class = if immutable { Class::Immutable } else { Class::Mutable };
            Word { id, class, checked_at, fresh_until, etag, generation, node: Node { name, url }, in_bucket }
        }
    }

    #[test]
    fn what_is_said_late_is_no_newer_for_it() {
        assert_eq!(Fence(9_000_000).of_what_was_checked(7_000), Fence(7_000_000));
        // A clock that was ahead.
        assert_eq!(Fence(9_000_000).of_what_was_checked(Millis::MAX), Fence(9_000_000));
    }

    proptest! {
        #[test]
        fn a_record_survives_its_encoding(word in records()) {
            prop_assert_eq!(Word::from_fields(&encoded(&word)), Some(word));
        }

        #[test]
        fn half_a_record_is_none(word in records(), missing in 0usize..7, garbage in ".{0,12}") {
            let name = ["id", "class", "node", "bucket", "fence", "checked", "until"][missing];
            let mut fields = encoded(&word);
            fields.remove(name);
            prop_assert_eq!(Word::from_fields(&fields), None);
            fields.insert(name.to_owned(), garbage);
            let _ = Word::from_fields(&fields);
        }

        #[test]
        fn it_is_kept_longer_than_it_is_fresh_and_not_for_ever(word in records()) {
            let kept = word.kept();
            prop_assert!(kept >= Duration::from_secs(3600) && kept <= MAX_KEPT);
        }

        #[test]
        fn hashes(hash in any::<Hash>(), text in any::<String>()) {
            prop_assert_eq!(parse_hash(&hex::encode(hash)), Some(hash));
            let _ = parse_hash(&text);
        }
    }
}
