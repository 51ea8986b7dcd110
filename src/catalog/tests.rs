//! The catalogue as its users see it, on a real file and on a real server.

mod paging;
pub(crate) mod places;

use std::collections::BTreeSet;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use places::{File, Place, on_every_database};

on_every_database! {
    an_objects_life,
    digests_outlive_their_objects,
    links_are_seen_at_once_and_kept,
    the_first_sight_of_a_file_is_kept,
    a_date_that_was_told_never_gets_later,
    what_is_recorded_is_written_by_itself_and_at_the_end,
    a_flush_pages_through_what_it_removes,
    a_cursor_is_stable_while_others_come_and_go,
    two_processes_share_it,
    what_is_let_through_is_kept_until_it_is_forgotten,
}

pub(crate) fn record(remote: &str, path: &str, size: u64) -> Record {
    Record {
        remote: remote.into(),
        path: path.into(),
        form: String::new(),
        class: Class::Immutable,
        size,
        digest: format!("sha256:{size:064x}"),
        content_type: "application/octet-stream".into(),
        etag: Some("\"e\"".into()),
        last_modified: Some("Thu, 01 Jan 1970 00:00:00 GMT".into()),
        published_at: Some(0),
        first_seen: 100,
        last_seen: 100,
        hits: 0,
        fresh_until: None,
        key: format!("{size:032x}"),
    }
}

pub(super) fn stored(record: Record) -> Event {
    Event::Stored {
        object: Box::new(record),
    }
}

pub(super) fn removed(remote: &str, path: &str) -> Event {
    Event::Removed {
        remote: remote.into(),
        path: path.into(),
        form: String::new(),
    }
}

fn new() -> (TempDir, Catalog) {
    let File(dir) = File::new();
    let catalog = Catalog::open(dir.path()).expect("a new catalogue");
    (dir, catalog)
}

pub(super) fn query(text: &str) -> ListQuery {
    ListQuery::parse(text).expect("a good query")
}

/// All pages of a query, each asked for as a client does: by the text of the cursor.
pub(super) async fn all(catalog: &Catalog, text: &str) -> (Vec<Record>, Option<Totals>) {
    let mut records = Vec::new();
    let mut page = catalog.list(query(text)).await.expect("a page");
    let totals = page.totals;
    loop {
        records.append(&mut page.records);
        let Some(next) = page.next else {
            return (records, totals);
        };
        page = catalog
            .list(query(&format!("{text}&cursor={next}")))
            .await
            .expect("a page");
        assert_eq!(page.totals, None);
    }
}

async fn what_is_let_through_is_kept_until_it_is_forgotten(place: impl Place) {
    let artifact = |path: &str, reason: &str, at| LetThrough {
        remote: "r".into(),
        path: path.into(),
        reason: reason.into(),
        by: "127.0.0.1".into(),
        at,
    };
    let catalog = place.open().await;
    assert_eq!(catalog.let_through().await.expect("an answer"), []);
    for kept in [
        artifact("a", "first", 1),
        artifact("b", "'quoted'; --", 2),
        artifact("a", "second", 3),
        LetThrough {
            remote: "other".into(),
            ..artifact("a", "elsewhere", 4)
        },
    ] {
        catalog.keep_let_through(kept).await.expect("kept");
    }
    drop(catalog);
    let catalog = place.open().await;
    let kept = catalog.let_through().await.expect("an answer");
    let reasons: Vec<&str> = kept.iter().map(|artifact| artifact.reason.as_str()).collect();
    assert_eq!(reasons, ["elsewhere", "second", "'quoted'; --"]);
    assert_eq!(kept[1], artifact("a", "second", 3));
    catalog
        .forget_let_through("r", vec!["a".into(), "none".into()])
        .await
        .expect("forgotten");
    let kept = catalog.let_through().await.expect("an answer");
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|artifact| artifact.reason != "second"));
}

async fn an_objects_life(place: impl Place) {
    let catalog = place.open().await;
    catalog.record(stored(Record {
        fresh_until: Some(500),
        ..record("r", "a/b?c=1", 7)
    }));
    catalog.hits("r", "a/b?c=1", "", 1, 120);
    catalog.drain().await.expect("written");
    let mut expected = Record {
        hits: 1,
        last_seen: 120,
        fresh_until: Some(500),
        ..record("r", "a/b?c=1", 7)
    };
    assert_eq!(
        catalog.get("r", "a/b?c=1").await.expect("an answer"),
        Some(expected.clone())
    );
    assert_eq!(catalog.get("r", "a/b").await.expect("an answer"), None);

    catalog.record(Event::Hit {
        remote: "r".into(),
        path: "a/b?c=1".into(),
        form: String::new(),
        at: 90,
    });
    catalog.record(Event::Refreshed {
        remote: "r".into(),
        path: "a/b?c=1".into(),
        form: String::new(),
        fresh_until: Some(900),
        at: 130,
    });
    catalog.drain().await.expect("written");
    expected = Record {
        hits: 2,
        last_seen: 130,
        fresh_until: Some(900),
        ..expected
    };
    assert_eq!(
        catalog.get("r", "a/b?c=1").await.expect("an answer"),
        Some(expected.clone())
    );

    // Replaced: what it is changes, when it was first seen and how often it was asked for do not.
    let other = Record {
        class: Class::Mutable,
        first_seen: 200,
        last_seen: 200,
        ..record("r", "a/b?c=1", 9)
    };
    catalog.record(stored(other.clone()));
    catalog.drain().await.expect("written");
    let expected = Record {
        first_seen: 100,
        hits: 2,
        ..other.clone()
    };
    assert_eq!(catalog.get("r", "a/b?c=1").await.expect("an answer"), Some(expected));
    let totals = |objects, bytes| Some(Totals { objects, bytes });
    assert_eq!(all(&catalog, "class=immutable").await.1, totals(0, 0));
    assert_eq!(all(&catalog, "class=mutable").await.1, totals(1, 9));

    // It went away and came back within one batch: it is new.
    catalog.record(removed("r", "a/b?c=1"));
    catalog.record(stored(other.clone()));
    catalog.drain().await.expect("written");
    assert_eq!(catalog.get("r", "a/b?c=1").await.expect("an answer"), Some(other));

    catalog.record(removed("r", "a/b?c=1"));
    catalog.hits("r", "a/b?c=1", "", 1, 300);
    catalog.hits("r", "never/stored", "", 1, 300);
    catalog.drain().await.expect("written");
    assert_eq!(all(&catalog, "").await, (vec![], totals(0, 0)));
}

async fn digests_outlive_their_objects(place: impl Place) {
    let catalog = place.open().await;
    let object = |path: &str, digest: &str, class: Class| Record {
        class,
        digest: digest.to_owned(),
        ..record("r", path, 1)
    };
    catalog.record(stored(object("a", "sha256:1", Class::Immutable)));
    catalog.record(stored(object("b", "sha256:2", Class::Mutable)));
    catalog.drain().await.expect("written");
    let seen = async |path: &str| catalog.seen_digest("r", path, "").await.expect("an answer");
    assert_eq!(seen("a").await.as_deref(), Some("sha256:1"));
    // What may change has nothing to be held against.
    assert_eq!(seen("b").await, None);
    catalog.record(removed("r", "a"));
    catalog.drain().await.expect("written");
    assert_eq!(seen("a").await.as_deref(), Some("sha256:1"));
    assert_eq!(catalog.seen_digest("s", "a", "").await.expect("an answer"), None);
    assert_eq!(catalog.seen_digest("r", "a", "json").await.expect("an answer"), None);
    // It comes back, and changes where it is.
    for digest in ["sha256:3", "sha256:4"] {
        catalog.record(stored(object("a", digest, Class::Immutable)));
        catalog.drain().await.expect("written");
        assert_eq!(seen("a").await.as_deref(), Some(digest));
    }
    catalog.record(stored(object("b", "sha256:2", Class::Immutable)));
    catalog.drain().await.expect("written");
    assert_eq!(seen("b").await.as_deref(), Some("sha256:2"));
}

async fn links_are_seen_at_once_and_kept(place: impl Place) {
    let catalog = place.open().await;
    let url = "https://files.example/p/x-1.whl";
    catalog
        .add_links("pypi", vec![url.to_owned(), url.to_owned()])
        .await
        .expect("room");
    assert!(catalog.has_link("pypi", url).await.expect("an answer"));
    catalog.drain().await.expect("written");
    assert_eq!(catalog.status().queued_links, 0);
    catalog.close().await;
    let catalog = place.open().await;
    assert!(catalog.has_link("pypi", url).await.expect("an answer"));
    assert!(!catalog.has_link("npm", url).await.expect("an answer"));
    assert!(
        !catalog
            .has_link("pypi", "https://files.example/p/x-1.wh")
            .await
            .expect("an answer")
    );
}

async fn the_first_sight_of_a_file_is_kept(place: impl Place) {
    let catalog = place.open().await;
    let seen = async |catalog: &Catalog, index: &str, files: &[&str]| {
        let files = files.iter().map(|file| (*file).to_owned());
        catalog.first_seen("r", index, files, 1000).await.expect("an answer")
    };
    assert!(seen(&catalog, "a", &[]).await.is_empty());
    let hash = NameHash::of_file("a", "old");
    let early = catalog.inner.backend.earliest("r", &[(hash, 100), (hash, 200)]).await;
    assert_eq!(early.expect("an answer"), [(hash, 100)].into());
    let first = seen(&catalog, "a", &["old", "new", "new"]).await;
    assert_eq!((first.len(), first["old"]), (2, 100));
    assert_eq!(first["new"], 1000);
    assert_eq!(seen(&catalog, "b", &["old"]).await["old"], 1000);
    // Who brings an earlier sight later is right all the same.
    let earlier = catalog.inner.backend.earliest("r", &[(hash, 50)]).await;
    assert_eq!(earlier.expect("an answer")[&hash], 50);
    catalog.close().await;
    let catalog = place.open().await;
    assert_eq!(seen(&catalog, "a", &["old", "new"]).await["old"], 50);
}

async fn a_date_that_was_told_never_gets_later(place: impl Place) {
    let catalog = place.open().await;
    let told = async |catalog: &Catalog, now: u64| {
        let files = [("a", Some("p/a")), ("b", Some("p/b")), ("c", None)];
        let files = files.map(|(file, path)| (file.to_owned(), path.map(str::to_owned)));
        let told = catalog.dates("r", "index", &files, now).await.expect("an answer");
        ["a", "b", "c"].map(|file| told[file])
    };
    let modified = async |catalog: &Catalog, path: &str, at: i64| {
        let record = Record {
            published_at: Some(at),
            ..record("r", path, 1)
        };
        catalog.record(removed("r", path));
        catalog.record(stored(record));
        catalog.drain().await.expect("written");
    };
    modified(&catalog, "p/a", 500).await;
    assert_eq!(told(&catalog, 1000).await, [500, 1000, 1000]);
    // What was seen first is no date that upstream told.
    let seen = catalog.first_seen("r", "index", ["a".to_owned()], 2000).await;
    assert_eq!(seen.expect("an answer")["a"], 1000);
    modified(&catalog, "p/a", 900).await;
    modified(&catalog, "p/b", 700).await;
    assert_eq!(told(&catalog, 2000).await, [500, 700, 1000]);
    catalog.record(removed("r", "p/b"));
    modified(&catalog, "p/a", 3000).await;
    catalog.close().await;
    let catalog = place.open().await;
    assert_eq!(told(&catalog, 4000).await, [500, 700, 1000]);
    let other = [("a".to_owned(), Some("p/b".to_owned()))];
    assert_eq!(
        catalog.dates("r", "other", &other, 4000).await.expect("an answer")["a"],
        4000
    );
}

async fn what_is_recorded_is_written_by_itself_and_at_the_end(place: impl Place) {
    let catalog = place.open().await;
    catalog.record(stored(record("r", "soon", 1)));
    let deadline = Instant::now() + Duration::from_secs(20);
    while catalog.get("r", "soon").await.expect("an answer").is_none() {
        assert!(Instant::now() < deadline, "{catalog:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    catalog.record(stored(record("r", "last", 1)));
    catalog.close().await;
    catalog.record(stored(record("r", "late", 1)));
    assert!(matches!(catalog.drain().await, Err(CatalogError::Closed)));
    assert!(matches!(
        catalog.add_links("r", vec!["u".into()]).await,
        Err(CatalogError::Closed)
    ));
    let status = catalog.status();
    assert!(!status.healthy && status.dropped_changes == 1, "{status:?}");
    let again = place.open().await;
    let paths: Vec<String> = all(&again, "").await.0.into_iter().map(|record| record.path).collect();
    assert_eq!(paths, ["last", "soon"]);
    // A handle that is dropped writes too.
    again.record(stored(record("r", "dropped", 1)));
    let shared = again.inner.shared.clone();
    drop(again);
    shared.ended().await;
    let again = place.open().await;
    assert!(again.get("r", "dropped").await.expect("an answer").is_some());
}

async fn a_flush_pages_through_what_it_removes(place: impl Place) {
    let catalog = place.open().await;
    for n in 0..250 {
        catalog.record(stored(record(
            if n % 2 == 0 { "a" } else { "b" },
            &format!("p/{n:03}.whl"),
            n,
        )));
    }
    catalog.drain().await.expect("written");
    let flush = FlushRequest::parse(br#"{"remote": "a", "pattern": "[05]\\.whl$"}"#).expect("a good body");
    let mut after = None;
    let mut matched = 0;
    loop {
        let page = catalog.matching(&flush.filter, after, 7).await.expect("a page");
        for record in page.records {
            assert!(record.remote == "a" && record.path.ends_with("0.whl"), "{record:?}");
            matched += 1;
            catalog.record(Event::Removed {
                remote: record.remote,
                path: record.path,
                form: record.form,
            });
        }
        catalog.drain().await.expect("written");
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(matched, 25);
    assert_eq!(all(&catalog, "").await.1.expect("totals").objects, 225);
}

async fn a_cursor_is_stable_while_others_come_and_go(place: impl Place) {
    let catalog = place.open().await;
    for n in 0..100 {
        catalog.record(stored(record("r", &format!("{n:03}"), n % 3)));
    }
    catalog.drain().await.expect("written");
    for sort in ["path", "-path", "size", "-size"] {
        let text = format!("sort={sort}&limit=10");
        let mut page = catalog.list(query(&text)).await.expect("a page");
        let mut seen = BTreeSet::new();
        let mut round = 0;
        loop {
            for record in page.records.drain(..).filter(|record| record.path.len() == 3) {
                assert!(seen.insert(record.path.clone()), "{} twice", record.path);
            }
            round += 1;
            catalog.record(stored(record("r", &format!("{:03}+{sort}", round * 7), round % 3)));
            catalog.record(removed("r", &format!("{:03}+{sort}", (round - 1) * 7)));
            catalog.drain().await.expect("written");
            let Some(next) = page.next else { break };
            page = catalog
                .list(query(&format!("{text}&cursor={next}")))
                .await
                .expect("a page");
        }
        assert_eq!(seen.len(), 100, "{sort}");
        catalog.record(removed("r", &format!("{:03}+{sort}", round * 7)));
        catalog.drain().await.expect("written");
    }
}

#[test]
fn a_newer_file_is_left_alone() {
    let (dir, catalog) = new();
    drop(catalog);
    let file = dir.path().join("catalog.db");
    let connection = rusqlite::Connection::open(&file).expect("the file");
    connection.pragma_update(None, "user_version", 99).expect("written");
    drop(connection);
    let error = Catalog::open(dir.path()).expect_err("too new").to_string();
    assert!(
        error.contains(&format!(
            "catalog.db has schema version 99, this program knows up to {}",
            crate::catalog::sqlite::schema::VERSION
        )),
        "{error}"
    );
    let found: i64 = rusqlite::Connection::open(&file)
        .and_then(|connection| connection.pragma_query_value(None, "user_version", |row| row.get(0)))
        .expect("untouched");
    assert_eq!(found, 99);
}

#[tokio::test]
async fn a_damaged_file_is_moved_aside() {
    let (dir, catalog) = new();
    catalog.record(stored(record("r", "a", 1)));
    catalog.close().await;
    assert!(
        !dir.path().join("catalog.db-wal").exists(),
        "closed with its log in the file"
    );
    drop(catalog);
    let file = dir.path().join("catalog.db");
    for n in 1..=3 {
        std::fs::write(
            &file,
            b"this is no database, and long enough to be sure of that".repeat(99),
        )
        .expect("written");
        let catalog = Catalog::open(dir.path()).expect("a new catalogue");
        assert!(catalog.status().healthy);
        assert!(dir.path().join(format!("catalog.db.corrupt-{n}")).exists());
        assert_eq!(catalog.get("r", "a").await.expect("an answer"), None);
        catalog.record(stored(record("r", "a", 1)));
        catalog.drain().await.expect("written");
        catalog.close().await;
    }
}

#[tokio::test]
async fn damage_under_way_costs_the_list_only() {
    use std::os::unix::fs::FileExt as _;
    let (dir, catalog) = new();
    for n in 0..5_000 {
        catalog.record(stored(record("r", &format!("{n}"), n)));
    }
    catalog.drain().await.expect("written");
    // Put the log back into the file, then overwrite all pages but the first.
    let file = dir.path().join("catalog.db");
    rusqlite::Connection::open(&file)
        .and_then(|connection| connection.pragma_query_value(None, "wal_checkpoint", |_| Ok(())))
        .expect("checkpointed");
    let length = std::fs::metadata(&file).expect("there").len();
    let junk = vec![0x5a; usize::try_from(length).expect("small") - 4_096];
    let handle = std::fs::OpenOptions::new().write(true).open(&file).expect("there");
    handle.write_all_at(&junk, 4_096).expect("written");
    // Readers have pages in their caches: a change by another connection makes them look again.
    let mut failed = false;
    for n in 0..200 {
        catalog.record(stored(record("r", &format!("later/{n}"), 1)));
        failed |= catalog.drain().await.is_err();
        failed |= catalog.list(query("sort=size")).await.is_err();
        if dir.path().join("catalog.db.corrupt-1").exists() {
            break;
        }
    }
    assert!(failed);
    // It heals: what was in the failed batch is written to the new file.
    catalog.record(stored(record("r", "after", 1)));
    let _ = catalog.drain().await;
    catalog.drain().await.expect("a new file");
    assert!(dir.path().join("catalog.db.corrupt-1").exists());
    assert!(catalog.status().healthy);
    assert!(catalog.get("r", "after").await.expect("an answer").is_some());
}

#[tokio::test]
async fn a_database_that_is_away_costs_nothing_but_time() {
    let dir = tempfile::tempdir().expect("a directory");
    // A directory where the file should be: it cannot be opened.
    let file = dir.path().join("catalog.db");
    std::fs::create_dir(&file).expect("made");
    let catalog = Catalog::open(dir.path()).expect("it opens all the same");
    assert!(!catalog.status().healthy);
    catalog.record(stored(record("r", "a", 1)));
    catalog
        .add_links("r", vec!["https://x.example/".into()])
        .await
        .expect("room");
    let error = catalog.drain().await.expect_err("not there");
    assert!(matches!(error, CatalogError::Unavailable(_)), "{error}");
    assert!(catalog.list(query("")).await.is_err());
    assert!(
        catalog
            .has_link("r", "https://x.example/")
            .await
            .expect("among the latest")
    );
    assert!(catalog.has_link("r", "https://y.example/").await.is_err());
    let status = catalog.status();
    assert!(
        status.error.is_some() && status.queued == 1 && status.queued_links == 1,
        "{status:?}"
    );
    std::fs::remove_dir(&file).expect("removed");
    // By itself: nobody drains, nothing is recorded.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !catalog.status().healthy {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(catalog.get("r", "a").await.expect("an answer").is_some());
    assert!(catalog.has_link("r", "https://x.example/").await.expect("an answer"));
}

#[tokio::test]
async fn a_locked_file_is_waited_for() {
    let (dir, catalog) = new();
    let other = rusqlite::Connection::open(dir.path().join("catalog.db")).expect("the file");
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    catalog.record(stored(record("r", "a", 1)));
    catalog.drain().await.expect_err("locked for longer than is waited");
    assert!(!catalog.status().healthy);
    assert_eq!(catalog.list(query("")).await.expect("reading goes on").records, []);
    other.execute_batch("ROLLBACK").expect("unlocked");
    catalog.drain().await.expect("written");
    assert!(catalog.status().healthy);
}

async fn two_processes_share_it(place: impl Place) {
    let one = place.open().await;
    let two = place.open().await;
    for n in 0..3_000 {
        one.record(stored(record("r", &format!("one/{n}"), 1)));
        two.record(stored(record("r", &format!("two/{n}"), 1)));
        two.hits("r", &format!("one/{n}"), "", 1, 1);
    }
    let (a, b) = tokio::join!(one.drain(), two.drain());
    a.and(b).expect("both written");
    for catalog in [&one, &two] {
        let totals = catalog.list(query("")).await.expect("a page").totals;
        assert_eq!(
            totals,
            Some(Totals {
                objects: 6_000,
                bytes: 6_000
            })
        );
    }
}
