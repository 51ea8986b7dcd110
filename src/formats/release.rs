//! Releases as an index tells of them: when each was published, and the index without those that are held back.
//!
//! Whoever chooses a version by such an index finds the newest one that may be had.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{IndexError, ViewContext};

/// The longest index that releases are held back from, in bytes: it is read as a whole.
pub const LONGEST: usize = 256 << 20;
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
}
