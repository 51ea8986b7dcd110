//! Who asked for what is held back, on this node since its start: in memory, and no more than there is room for.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalog::unix_now;
use crate::formats::Asset;
use crate::formats::hold::Dates;

/// Artifacts that are remembered; the one that nobody asked for the longest time is forgotten for another.
const MOST_ARTIFACTS: usize = 10_000;
/// Addresses that are remembered of those who asked for one.
const MOST_CLIENTS: usize = 8;

/// Remote, and path below it as it was asked for.
pub(super) type Name = (Arc<str>, Arc<str>);

/// What was asked for.
#[derive(Debug, Default)]
pub struct Asked(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    artifacts: HashMap<Name, Questions>,
    /// By [`Questions::turn`].
    order: BTreeMap<u64, Name>,
    turn: u64,
}

/// How an artifact was asked for.
#[derive(Debug, Clone)]
pub(super) struct Questions {
    pub(super) count: u64,
    /// The first of them.
    pub(super) clients: Vec<IpAddr>,
    /// In Unix seconds.
    pub(super) last: i64,
    pub(super) dates: Dates,
    turn: u64,
}

/// The path of `asset` as it is shown, with its query.
pub(super) fn shown(asset: &Asset) -> String {
    match &asset.path.query {
        Some(query) => format!("{}?{query}", asset.path.encoded),
        None => asset.path.encoded.clone(),
    }
}

impl Asked {
    /// `client` asked for `asset`, which is held by these dates.
    pub fn note(&self, asset: &Asset, dates: Dates, client: Option<IpAddr>) {
        let name = (Arc::from(asset.remote.name.as_str()), Arc::from(shown(asset)));
        self.0.lock().note(name, dates, client, unix_now());
    }

    /// All of it, what was asked for last first.
    pub(super) fn list(&self) -> Vec<(Name, Questions)> {
        let table = self.0.lock();
        let names = table.order.values().rev();
        let listed = names.filter_map(|name| Some((name.clone(), table.artifacts.get(name)?.clone())));
        listed.collect()
    }
}

impl Table {
    fn note(&mut self, name: Name, dates: Dates, client: Option<IpAddr>, now: i64) {
        self.turn += 1;
        let questions = self.artifacts.entry(name.clone()).or_insert_with(|| Questions {
            count: 0,
            clients: Vec::new(),
            last: now,
            dates,
            turn: 0,
        });
        self.order.remove(&questions.turn);
        questions.count += 1;
        questions.last = now;
        questions.dates = dates;
        questions.turn = self.turn;
        if let Some(client) = client
            && questions.clients.len() < MOST_CLIENTS
            && !questions.clients.contains(&client)
        {
            questions.clients.push(client);
        }
        self.order.insert(self.turn, name);
        if self.artifacts.len() > MOST_ARTIFACTS
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.artifacts.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(number: usize) -> Name {
        (Arc::from("r"), Arc::from(number.to_string()))
    }

    #[test]
    fn what_was_not_asked_for_the_longest_time_is_forgotten_first() {
        let mut table = Table::default();
        for number in 0..MOST_ARTIFACTS {
            table.note(name(number), Dates::default(), None, 0);
        }
        table.note(name(0), Dates::default(), None, 1);
        table.note(name(MOST_ARTIFACTS), Dates::default(), None, 2);
        assert_eq!(table.artifacts.len(), MOST_ARTIFACTS);
        assert_eq!(table.artifacts[&name(0)].count, 2);
        assert!(!table.artifacts.contains_key(&name(1)));
    }

    #[test]
    fn some_addresses_are_remembered_and_all_questions_counted() {
        let asked = Asked::default();
        for number in 0..20_u8 {
            let client = IpAddr::from([192, 0, 2, number % 10]);
            asked.0.lock().note(name(0), Dates::default(), Some(client), 7);
        }
        let list = asked.list();
        let [(_, questions)] = &list[..] else {
            panic!("{list:?}")
        };
        assert_eq!((questions.count, questions.last), (20, 7));
        let first: Vec<IpAddr> = (0..8).map(|number| IpAddr::from([192, 0, 2, number])).collect();
        assert_eq!(questions.clients, first);
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_in_order_once(names in prop::collection::vec(0..40_usize, 0..200)) {
            let mut table = Table::default();
            for (at, number) in names.iter().enumerate() {
                table.note(name(*number), Dates::default(), None, i64::try_from(at).unwrap());
            }
            prop_assert_eq!(table.order.len(), table.artifacts.len());
            let counted: u64 = table.artifacts.values().map(|questions| questions.count).sum();
            prop_assert_eq!(counted, names.len() as u64);
            let last = table.order.values().rev().map(|name| table.artifacts[name].last);
            prop_assert!(last.is_sorted_by(|a, b| a > b));
        }
    }
}
