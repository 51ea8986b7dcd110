//! Releases as an index tells of them: when each was published, by which digest its file is known, and the index without those
//! that are held back.
//!
//! Whoever chooses a version by such an index finds the newest one that may be had.

use std::collections::HashMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::hold::Hold;
use super::{IndexError, ViewContext};
use crate::cache::Expected;
use crate::config::{Holds, OwnKey, Remote};

/// The longest index that is read for its releases, in bytes: it is read as a whole.
pub const LONGEST: usize = 256 << 20;

/// A release, as an index tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// What [`ListedBy::file`] calls its file.
    pub file: String,
    /// In Unix seconds; `None`: the index does not say.
    pub published: Option<u64>,
    /// What the file must turn out to be; `None`: the index names no digest that can be verified here.
    pub digest: Option<Expected>,
}

/// Which index names a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBy {
    /// Paths below the remote: the first that names the file counts.
    pub indexes: Vec<String>,
    /// The `Accept` by which clients get each form of these indexes; what most clients ask for comes first.
    pub forms: &'static [Option<&'static str>],
    /// What the index calls the file.
    pub file: String,
    /// How many indexes stand between these and the one that names the file: each names the next ([`Told::Index`]).
    pub steps: usize,
    /// Whether it says when the file was published.
    pub tells_dates: bool,
}

/// An index that has one form only.
pub const ONE_FORM: &[Option<&str>] = &[None];

/// Reads an index to all files that it names. Takes the whole decoded document.
pub type Tell = fn(&[u8]) -> Vec<Release>;

/// How an index is read to what it tells of files.
#[derive(Debug, Clone, Copy)]
pub enum Tells {
    /// Reads the document as a whole, in memory.
    Whole(Tell),
    /// Reads the document while it comes; takes the decoded path of the index.
    Pieces(fn(&str) -> Box<dyn TellingReader>),
}

/// What an index tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A file.
    File(Release),
    /// Another index, by its decoded path below the remote: it names files in this one's stead.
    Index(String),
}

/// Reads an index by streaming to what it tells, and holds a bounded amount of it.
pub trait TellingReader: Send {
    /// Takes the next piece of the document, and appends to `told` what that completes.
    ///
    /// # Errors
    /// The document cannot be read from here on; what was told before counts.
    fn write(&mut self, piece: &[u8], told: &mut Vec<Told>) -> Result<(), IndexError>;
    /// The document is complete.
    ///
    /// # Errors
    /// The document is cut, or damaged.
    fn end(&mut self, told: &mut Vec<Told>) -> Result<(), IndexError>;
}

/// An index that says more of releases than where they are. Takes the whole decoded document.
pub struct Releases {
    /// All files that the document names.
    pub read: Tell,
    /// The document without those that are held.
    pub without: Without,
    /// How releases get dates that it does not date; `None`: it has no place for dates.
    pub dated: Option<&'static FillDates>,
}

/// How dates get into an index that has none for some releases. Both take the whole decoded document.
pub struct FillDates {
    /// The files that the document does not date.
    pub undated: fn(&ViewContext<'_>, &[u8]) -> Vec<Undated>,
    /// The document with these dates for them, in Unix seconds, by what the index calls the files.
    pub fill: Fill,
}

/// A file that its index does not date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undated {
    /// What the index calls it.
    pub file: String,
    /// Where it is below the remote, as the catalogue has it.
    pub path: Option<String>,
}

/// What dates the releases of an index that clients get.
pub(super) static RELEASE_DATES: OwnKey = OwnKey {
    name: "release_dates",
    follows: "client_revalidation",
    example: "upstream",
    help: "`filled`: where upstream has none, by what is known here",
    holds: Holds::Word(&["upstream", FILLED]),
};
const FILLED: &str = "filled";

/// Whether `remote` dates what upstream's index does not.
pub(super) fn fills_dates(remote: &Remote) -> bool {
    remote.own.word(&RELEASE_DATES) == FILLED
}

/// Puts dates into a document.
pub type Fill = fn(&ViewContext<'_>, &[u8], &HashMap<String, u64>) -> Result<Vec<u8>, IndexError>;

/// Leaves out of a document what is held.
pub type Without = fn(&ViewContext<'_>, &[u8], &mut Hold) -> Result<Vec<u8>, IndexError>;

/// A decoded path as an upstream may read it that takes an encoded slash for one, and none at the end.
pub(super) fn plain(path: &str) -> String {
    let path = path.replace("%2F", "/").replace("%2f", "/");
    path.trim_end_matches('/').to_owned()
}

/// Unix seconds as RFC 3339 has them.
pub(super) fn date(seconds: u64) -> String {
    let date = i64::try_from(seconds).ok();
    let date = date.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    date.and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_default()
}

/// The digest that an index writes in hexadecimal, in small letters or capitals, and may name the algorithm of.
pub(super) fn sha256(text: &str) -> Option<Expected> {
    let hex = text.trim().to_ascii_lowercase();
    Expected::new("sha256", hex.strip_prefix("sha256:").unwrap_or(&hex))
}

/// The last part of a decoded path, whatever upstream reads it as, without `extension`, in capitals or not.
pub(super) fn stem<'p>(plain: &'p str, extension: &str) -> Option<&'p str> {
    let file = plain.rsplit('/').next()?;
    let at = file.len().checked_sub(extension.len())?;
    let (stem, end) = (file.get(..at)?, file.get(at..)?);
    (!stem.is_empty() && end.eq_ignore_ascii_case(extension)).then_some(stem)
}

/// Name and version of a file, parted by the first hyphen that a semantic version follows: names may hold hyphens before
/// digits.
pub(super) fn name_and_version(stem: &str) -> Option<(&str, &str)> {
    let is_version = |text: &str| semver::Version::parse(text.strip_prefix('v').unwrap_or(text)).is_ok();
    let mut hyphens = stem.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0);
    let at = hyphens.find(|at| is_version(&stem[at + 1..]))?;
    Some((&stem[..at], &stem[at + 1..]))
}

/// Name and version of a file whose version has so many hyphens in it.
pub(super) fn name_and_revised_version(stem: &str, hyphens: usize) -> Option<(String, String)> {
    let (at, _) = stem.rmatch_indices('-').nth(hyphens).filter(|(at, _)| *at > 0)?;
    Some((stem[..at].to_owned(), stem[at + 1..].to_owned()))
}

/// Unix seconds of a date and time by RFC 3339; what was before 1970 is that long ago.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text.trim(), &Rfc3339).ok()?;
    Some(u64::try_from(time.unix_timestamp()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_read_with_fractions_and_offsets() {
        assert_eq!(seconds("1970-01-02T00:00:00.123456Z"), Some(86_400));
        assert_eq!(seconds("1970-01-02T01:00:00+01:00"), Some(86_400));
        assert_eq!(seconds("1960-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("1970-01-02"), None);
    }

    proptest! {
        #[test]
        fn digests_are_read_in_all_spellings(bytes: [u8; 32], upper: bool, named: bool, rest in "[0-9a-fA-F:]{0,70}") {
            let hex = hex::encode(bytes);
            let hex = if upper { hex.to_uppercase() } else { hex };
            let text = if named { format!("sha256:{hex}") } else { hex };
            prop_assert_eq!(sha256(&format!(" {text}\n")), Some(Expected::Sha256(bytes)));
            prop_assert_eq!(sha256(&format!("md5:{text}")), None);
            prop_assert!(rest.len() == 64 || sha256(&rest).is_none());
        }
    }
}
