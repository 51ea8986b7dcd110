//! What lies in a folder of a local repository. Paths are all there is; a folder is what several of them begin with.

use super::Locals;
use crate::catalog::{CatalogError, Filter, Position, Record, SortValue};
use crate::listing::is_local;

/// Entries of one page.
pub const MOST_ENTRIES: usize = 1000;
/// Questions to the catalogue for one page: a folder that is passed over costs one.
const MOST_QUESTIONS: usize = 300;
/// Files that are read at once.
const AT_ONCE: usize = 500;

/// What lies in a folder.
#[derive(Debug, Clone)]
pub enum Entry {
    /// The path of a folder in it, which ends in `/`.
    Folder(String),
    File(Box<Record>),
}

impl Entry {
    /// Below the remote, encoded.
    pub fn path(&self) -> &str {
        match self {
            Entry::Folder(path) => path,
            Entry::File(record) => &record.path,
        }
    }
}

/// A page of what lies in a folder, in the order of paths.
#[derive(Debug, Default)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// What to ask for the next page with, if there is one: the path after which it begins.
    pub next: Option<String>,
}

/// The folder in `folder` that `path` lies in, or is. `None`: it lies in `folder` itself.
fn folder_in<'a>(folder: &str, path: &'a str) -> Option<&'a str> {
    let below = path.strip_prefix(folder)?;
    let slash = below.find('/')?;
    Some(&path[..=folder.len() + slash])
}

/// The place behind `path`, and behind all that lies in it if it is a folder's.
fn behind(path: &str) -> Position {
    match path.strip_suffix('/') {
        // What follows `/` in the order of bytes.
        Some(folder) => Position {
            value: SortValue::Text(format!("{folder}0")),
            row: i64::MIN,
        },
        None => Position {
            value: SortValue::Text(path.to_owned()),
            row: i64::MAX,
        },
    }
}

impl Page {
    /// Takes what lies in `folder` of `records`, which follow the last entry in the order of paths, until there are `most`
    /// entries; where to go on.
    fn take(&mut self, folder: &str, most: usize, records: impl IntoIterator<Item = Record>) -> Option<Position> {
        let mut after = None;
        for record in records {
            let entry = match folder_in(folder, &record.path) {
                Some(inner) if self.entries.last().is_some_and(|last| last.path() == inner) => continue,
                Some(inner) => Entry::Folder(inner.to_owned()),
                None => Entry::File(Box::new(record)),
            };
            if self.entries.len() == most {
                self.next = self.entries.last().map(|last| last.path().to_owned());
                return None;
            }
            after = Some(behind(entry.path()));
            self.entries.push(entry);
        }
        after
    }
}

impl Locals {
    /// A page of at most `most` entries of what lies in `folder`, which is empty or ends in `/`, behind the path `after`.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list(
        &self,
        remote: &str,
        folder: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Page, CatalogError> {
        if after.is_none() {
            self.catalog.drain().await?;
        }
        let filter = Filter {
            remote: Some(remote.to_owned()),
            prefix: (!folder.is_empty()).then(|| folder.to_owned()),
            ..Filter::default()
        };
        let (mut page, mut position) = (Page::default(), after.map(behind));
        for _ in 0..MOST_QUESTIONS {
            let found = self.catalog.matching(&filter, position, AT_ONCE).await?;
            let last = found.next;
            let local = found.records.into_iter().filter(is_local);
            let after = page.take(folder, most, local);
            if page.next.is_some() || last.is_none() {
                return Ok(page);
            }
            // Behind a folder, when the last file that was read lies in it.
            position = after.max(last);
        }
        page.next = page.entries.last().map(|last| last.path().to_owned());
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Class;

    fn record(path: &str) -> Record {
        Record {
            remote: "r".to_owned(),
            path: path.to_owned(),
            form: "local".to_owned(),
            class: Class::Mutable,
            size: 1,
            digest: String::new(),
            content_type: String::new(),
            etag: None,
            last_modified: None,
            published_at: None,
            first_seen: 0,
            last_seen: 0,
            hits: 0,
            fresh_until: None,
            key: String::new(),
        }
    }

    /// All entries of `folder`, by pages of `most`, of which each question reads `at_once` files.
    fn listed(paths: &BTreeSet<String>, folder: &str, most: usize, at_once: usize) -> Vec<String> {
        let (mut all, mut after): (Vec<String>, Option<String>) = (Vec::new(), None);
        loop {
            let (mut page, mut position) = (Page::default(), after.as_deref().map(behind));
            loop {
                let is_behind = |path: &String| {
                    let place = Position {
                        value: SortValue::Text(path.clone()),
                        row: 7,
                    };
                    position.as_ref().is_none_or(|position| place > *position)
                };
                let found: Vec<&String> = paths
                    .iter()
                    .filter(|path| path.starts_with(folder) && is_behind(path))
                    .take(at_once)
                    .collect();
                let Some(last) = found.last() else { break };
                let last = Position {
                    value: SortValue::Text((*last).clone()),
                    row: 7,
                };
                let taken = page.take(folder, most, found.iter().map(|path| record(path)));
                if page.next.is_some() {
                    break;
                }
                position = taken.max(Some(last));
            }
            all.extend(page.entries.iter().map(|entry| entry.path().to_owned()));
            after = page.next;
            if after.is_none() {
                return all;
            }
        }
    }

    proptest! {
        #[test]
        fn every_page_size_lists_all_once_and_in_order(
            paths in proptest::collection::btree_set("[a-b.0]{1,2}(/[a-b.0]{1,2}){0,3}", 0..40),
            folder in prop_oneof![Just(String::new()), "[a-b.0]{1,2}/"],
            most in 1..6_usize,
            at_once in 1..9_usize,
        ) {
            let mut expected: Vec<String> = paths
                .iter()
                .filter_map(|path| {
                    let below = path.strip_prefix(folder.as_str())?;
                    Some(match below.split_once('/') {
                        Some((inner, _)) => format!("{folder}{inner}/"),
                        None => path.clone(),
                    })
                })
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            expected.dedup();
            prop_assert_eq!(listed(&paths, &folder, most, at_once), expected);
        }
    }
}
