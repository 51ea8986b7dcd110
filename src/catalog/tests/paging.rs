//! Listings of any kind against what they must hold, and how long they take.

use std::time::Instant;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;
use places::{Place, on_every_database};

on_every_database! {
    pages_of_many_rows_are_right_and_fast,
    the_pages_of_any_query_are_its_rows,
    #[ignore = "a million rows take minutes to write"]
    a_million_rows,
}

/// Rows of every kind, the same at every run: three remotes, both classes, few values of `hits`, many paths alike.
fn generated(n: u64) -> Record {
    let mix = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let remote = ["pypi", "npm", "alpine"][(mix % 3) as usize];
    let kind = ["whl", "tgz", "apk", "json"][(mix / 3 % 4) as usize];
    let path = format!(
        "packages/{:02x}/{:03x}/package-{n}-1.0.{kind}",
        mix % 64,
        mix / 64 % 4096
    );
    Record {
        class: if mix.is_multiple_of(17) {
            Class::Mutable
        } else {
            Class::Immutable
        },
        first_seen: 1_600_000_000 + (mix % 1_000_000) as i64,
        last_seen: 1_700_000_000 + (mix % 500_000) as i64,
        hits: if mix.is_multiple_of(10) { mix % 5 } else { 0 },
        ..record(remote, &path, mix % 100_000)
    }
}

async fn fill(catalog: &Catalog, rows: u64) {
    for n in 0..rows {
        catalog.record(stored(generated(n)));
        if n % 20_000 == 19_999 {
            catalog.drain().await.expect("written");
        }
    }
    catalog.drain().await.expect("written");
    assert_eq!(catalog.status().dropped_changes, 0);
}

const QUERIES: [&str; 20] = [
    "",
    "sort=-path",
    "sort=size",
    "sort=-size",
    "sort=-last_seen",
    "sort=hits",
    "sort=-hits",
    "sort=first_seen",
    "remote=npm&class=mutable",
    "remote=npm&sort=hits",
    "class=mutable&sort=-size",
    "prefix=packages/2a/",
    "prefix=packages/2a/1&sort=-size",
    "prefix=packages&sort=size&remote=npm",
    "glob=packages/2?/**/*.whl",
    "glob=*-1.0.apk&sort=-hits",
    "pattern=package-[0-9]*77-",
    "pattern=nothing-like-it",
    "min_size=99900",
    "older_than=100&sort=-last_seen&min_size=50000",
];

/// The pages of every query are its rows, in its order, and the first pages come fast.
async fn queries(catalog: &Catalog, rows: u64, slowest: Duration) {
    for text in QUERIES {
        let asked = query(text);
        let started = Instant::now();
        let page = catalog.list(asked.clone()).await.expect("a page");
        let first = started.elapsed();
        let mut deep = Duration::ZERO;
        if let Some(next) = &page.next {
            let started = Instant::now();
            catalog
                .list(query(&format!("{text}&cursor={next}")))
                .await
                .expect("a page");
            deep = started.elapsed();
        }
        println!("{text:45} first {first:>12.3?} (totals included), second {deep:>12.3?}");
        assert!(deep < slowest, "{text}: {deep:?}");
        if !asked.filter.looks_at_rows() {
            assert!(first < slowest, "{text}: {first:?}");
        }
        if rows > 100_000 {
            continue;
        }
        let (found, totals) = all(catalog, &format!("limit=1000&{text}")).await;
        let mut expected: Vec<Record> = (0..rows)
            .map(generated)
            .filter(|row| asked.filter.matches(row))
            .collect();
        let by = |row: &Record| match asked.sort.field {
            SortField::Path => (row.path.clone(), 0),
            SortField::Size => (String::new(), row.size as i64),
            SortField::LastSeen => (String::new(), row.last_seen),
            SortField::Hits => (String::new(), row.hits as i64),
            SortField::FirstSeen => (String::new(), row.first_seen),
        };
        assert!(
            found.is_sorted_by(|a, b| if asked.sort.descending {
                by(a) >= by(b)
            } else {
                by(a) <= by(b)
            }),
            "{text}"
        );
        let bytes = expected.iter().map(|row| row.size).sum();
        assert_eq!(
            totals,
            Some(Totals {
                objects: expected.len() as u64,
                bytes
            }),
            "{text}"
        );
        let mut found = found;
        found.sort_by(|a, b| (&a.remote, &a.path).cmp(&(&b.remote, &b.path)));
        expected.sort_by(|a, b| (&a.remote, &a.path).cmp(&(&b.remote, &b.path)));
        assert!(found == expected, "{text}");
    }
}

async fn pages_of_many_rows_are_right_and_fast(place: impl Place) {
    const ROWS: u64 = 25_000; // more than one page examines
    let catalog = place.open().await;
    fill(&catalog, ROWS).await;
    // A generous limit, for busy machines: a page that reads the whole table takes longer even so.
    queries(&catalog, ROWS, Duration::from_millis(500)).await;
}

async fn a_million_rows(place: impl Place) {
    let catalog = place.open().await;
    let started = Instant::now();
    fill(&catalog, 1_000_000).await;
    println!("written in {:?}", started.elapsed());
    queries(&catalog, 1_000_000, Duration::from_millis(50)).await;
    for n in 0..20_000 {
        let row = generated(n * 49);
        catalog.hits(&row.remote, &row.path, &row.form, 1, 1_800_000_000);
    }
    let started = Instant::now();
    catalog.drain().await.expect("written");
    println!("hits of 20,000 objects written in {:?}", started.elapsed());
    catalog.close().await;
    drop(catalog);
    let started = Instant::now();
    let catalog = place.open().await;
    println!("opened in {:?}", started.elapsed());
    let started = Instant::now();
    catalog.get("pypi", "none").await.expect("an answer");
    println!("first question answered in {:?}", started.elapsed());
}

fn small_record() -> impl Strategy<Value = Record> {
    let remote = prop::sample::select(vec!["a", "b", "c"]);
    let form = prop::sample::select(vec!["", "json"]);
    (
        remote,
        "[a-c%é]{1,3}(/[a-c]{1,2})?",
        form,
        any::<bool>(),
        0..4_u64,
        0..4_i64,
        0..3_u64,
    )
        .prop_map(|(remote, path, form, mutable, size, seen, hits)| Record {
            form: form.into(),
            class: if mutable { Class::Mutable } else { Class::Immutable },
            last_seen: 100 + seen,
            first_seen: 100 - seen,
            hits,
            ..record(remote, &path, size)
        })
}

fn filters() -> impl Strategy<Value = String> {
    let choose = |options: &'static [&'static str]| prop::sample::select(options);
    (
        choose(&["", "&remote=a", "&remote=c"]),
        choose(&["", "&class=mutable", "&class=immutable"]),
        choose(&["", "", "&prefix=a", "&prefix=%C3%A9", "&prefix=b/"]),
        choose(&["", "", "&pattern=a$", "&glob=*a", "&glob=a*/**"]),
        choose(&["", "", "&min_size=2"]),
    )
        .prop_map(|(a, b, c, d, e)| [a, b, c, d, e].concat())
}

async fn the_pages_of_any_query_are_its_rows(place: impl Place) {
    let catalog = place.open().await;
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 48,
        ..ProptestConfig::default()
    });
    let cases = (prop::collection::vec(small_record(), 0..60), filters(), 1..12_usize);
    for _ in 0..runner.config().cases {
        let (records, filter, limit) = cases.new_tree(&mut runner).expect("a case").current();
        let mut known: Vec<Record> = Vec::new();
        for record in records {
            if !known
                .iter()
                .any(|k| (&k.remote, &k.path, &k.form) == (&record.remote, &record.path, &record.form))
            {
                known.push(record.clone());
                catalog.record(stored(record));
            }
        }
        catalog.drain().await.expect("written");
        let all_known = known.clone();
        let wanted = query(&filter).filter;
        known.retain(|record| wanted.matches(record));
        let key = |row: &Record| (row.remote.clone(), row.path.clone(), row.form.clone());
        known.sort_by_key(key);
        for field in SortField::ALL {
            for sign in ["", "-"] {
                let text = format!("sort={sign}{}&limit={limit}{filter}", field.name());
                let (mut rows, totals) = all(&catalog, &text).await;
                let by = |row: &Record| match field {
                    SortField::Path => (0, row.path.clone()),
                    SortField::Size => (row.size as i64, String::new()),
                    SortField::LastSeen => (row.last_seen, String::new()),
                    SortField::Hits => (row.hits as i64, String::new()),
                    SortField::FirstSeen => (row.first_seen, String::new()),
                };
                let sorted = rows.is_sorted_by(|a, b| if sign == "-" { by(a) >= by(b) } else { by(a) <= by(b) });
                assert!(sorted, "{text}: {all_known:#?}");
                rows.sort_by_key(key);
                assert_eq!(rows, known, "{text}");
                let bytes = known.iter().map(|row| row.size).sum();
                let objects = known.len() as u64;
                assert_eq!(totals, Some(Totals { objects, bytes }), "{text}");
            }
        }
        for Record { remote, path, form, .. } in all_known {
            catalog.record(Event::Removed { remote, path, form });
        }
        catalog.drain().await.expect("written");
    }
}
