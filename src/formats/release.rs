//! Releases as an index tells of them: when each was published, and the index without those that are held back.
//!
//! Whoever chooses a version by such an index finds the newest one that may be had.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{IndexError, ViewContext};

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// How long releases are held back, and what that means for a document.
#[derive(Debug, Clone)]
pub struct Hold {
    days: u32,
    /// In Unix seconds, as all times here.
    now: u64,
    due: Option<u64>,
}

impl Hold {
    /// What was published less than `days` ago is held at `now`, in Unix seconds.
    pub fn new(days: u32, now: u64) -> Self {
        Hold { days, now, due: None }
    }

    /// When something that was published at `published` may be served.
    pub fn ends(&self, published: u64) -> u64 {
        published.saturating_add(u64::from(self.days) * DAY)
    }

    /// Whether what was published then is held now; what is held is remembered.
    pub fn is_held(&mut self, published: u64) -> bool {
        let ends = self.ends(published);
        let held = self.now < ends;
        if held {
            self.due = Some(self.due.map_or(ends, |due| due.min(ends)));
        }
        held
    }

    /// When the first of those that are held is due: then the document is another one.
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    /// For a person: why a release is not there.
    pub fn reason(&self) -> String {
        format!("published less than {} days ago; held back by quarantine", self.days)
    }
}

/// A release, as an index tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// What [`DatedBy::name`] calls its file.
    pub name: String,
    /// In Unix seconds.
    pub published: u64,
}

/// Which index tells when a file was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatedBy {
    /// Paths below the remote: the first that names the file counts.
    pub indexes: Vec<String>,
    /// What the index calls the file.
    pub name: String,
}

/// An index that tells when releases were published. Takes the whole decoded document.
pub struct Dated {
    /// All releases that the document dates.
    pub releases: fn(&[u8]) -> Vec<Release>,
    /// The document without those that are held.
    pub without: Without,
}

/// Leaves out of a document what is held.
pub type Without = fn(&ViewContext<'_>, &[u8], &mut Hold) -> Result<Vec<u8>, IndexError>;

/// A decoded path as an upstream may read it that takes an encoded slash for one, and none at the end.
pub(super) fn plain(path: &str) -> String {
    let path = path.replace("%2F", "/").replace("%2f", "/");
    path.trim_end_matches('/').to_owned()
}

/// Unix seconds of a date and time by RFC 3339; what was before 1970 is that long ago.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text.trim(), &Rfc3339).ok()?;
    Some(u64::try_from(time.unix_timestamp()).unwrap_or(0))
}

/// The members of a JSON object in their order, values as they are written; a name may come twice.
#[derive(Debug, Default)]
pub(super) struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads an object.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn read(json: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// The value that clients see: the last of that name.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| *value)
    }

    /// Such a value, if it is a string.
    pub(super) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        text(self.get(name)?)
    }

    /// Such a value, if it is an object.
    pub(super) fn object(&self, name: &str) -> Option<Members<'a>> {
        Members::read(self.get(name)?.get()).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// A string, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A JSON string.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let Name(text) = serde_json::from_str(value.get()).ok()?;
    Some(text)
}

/// The items of a JSON array, as they are written.
pub(super) fn items(value: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(value.get()).ok()
}

/// Writes a JSON object from members whose values are written already.
pub(super) fn object<'m>(members: impl IntoIterator<Item = (&'m str, &'m str)>) -> String {
    let mut out = String::from("{");
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(name).to_string());
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    out
}

/// Writes a JSON array from items that are written already.
pub(super) fn array<'m>(items: impl IntoIterator<Item = &'m str>) -> String {
    let items: Vec<&str> = items.into_iter().collect();
    format!("[{}]", items.join(","))
}

/// The text of a JSON document.
///
/// # Errors
/// It is not in UTF-8.
pub(super) fn json_text(document: &[u8]) -> Result<&str, IndexError> {
    let document = document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document);
    std::str::from_utf8(document).map_err(|error| IndexError(format!("upstream's index is not in UTF-8: {error}")))
}

/// Upstream's index is no JSON that clients could read.
pub(super) fn no_json(error: &serde_json::Error) -> IndexError {
    IndexError(format!("upstream's index is no JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_due_at_the_end_of_its_days() {
        let mut hold = Hold::new(3, 10 * DAY);
        assert!(!hold.is_held(7 * DAY));
        assert_eq!(hold.due(), None);
        assert!(hold.is_held(9 * DAY));
        assert!(hold.is_held(8 * DAY));
        assert!(hold.is_held(20 * DAY));
        assert_eq!(hold.due(), Some(11 * DAY));
        assert!(Hold::new(u32::MAX, 0).is_held(u64::MAX));
    }

    #[test]
    fn dates_are_read_with_fractions_and_offsets() {
        assert_eq!(seconds("1970-01-02T00:00:00.123456Z"), Some(DAY));
        assert_eq!(seconds("1970-01-02T01:00:00+01:00"), Some(DAY));
        assert_eq!(seconds("1960-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("1970-01-02"), None);
    }

    #[test]
    fn members_keep_their_order_and_spelling() {
        let json = r#"{"a": 1.0, "b\u0041": {"x" : [1, 2]}, "a":"\u00e9"}"#;
        let members = Members::read(json).unwrap();
        assert_eq!(members.get("bA").unwrap().get(), r#"{"x" : [1, 2]}"#);
        assert_eq!(members.text("a").unwrap(), "é");
        let written = object(members.0.iter().map(|(name, value)| (&**name, value.get())));
        assert_eq!(written, r#"{"a":1.0,"bA":{"x" : [1, 2]},"a":"\u00e9"}"#);
        assert!(Members::read("[]").is_err());
    }
}
