//! What only a server can do: be away, hang, be too old, too new or not allowed. What every catalogue does is tested in
//! `catalog/tests.rs`.

use std::time::{Duration, Instant};

use tokio_postgres::NoTls;

use super::schema::VERSION;
use crate::breaker::Breaker;
use crate::catalog::tests::places::{RUNTIME, Server, healthy, settings};
use crate::catalog::tests::{all, query, record, removed, stored};
use crate::catalog::{Catalog, CatalogError, Record, Totals};
use crate::config::{DatabaseTls, Secret, TlsMode};

type Opened = (Catalog, std::sync::Arc<Breaker>);

fn open(settings: &crate::config::Database) -> Opened {
    let started = Instant::now();
    let opened = Catalog::open_postgres(settings, RUNTIME.handle()).expect("a catalogue");
    assert!(started.elapsed() < Duration::from_millis(500), "it waits for nothing");
    opened
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn objects(catalog: &Catalog) -> u64 {
    let page = catalog.list(query("")).await.expect("a page");
    page.totals.expect("totals").objects
}

#[tokio::test]
async fn a_server_that_comes_later_costs_nothing_but_time() {
    let mut server = Server::prepare();
    let (catalog, breaker) = open(&settings(&server));
    catalog.record(stored(record("r", "a", 1)));
    catalog
        .add_links("r", vec!["https://x.example/".into()])
        .await
        .expect("room");
    until("known to be away", async || !breaker.is_closed()).await;
    let started = Instant::now();
    let error = catalog.drain().await.expect_err("not there");
    assert!(
        matches!(&error, CatalogError::Unavailable(why) if why.contains("onnection refused")),
        "{error}"
    );
    assert!(catalog.list(query("")).await.is_err());
    assert!(catalog.get("r", "a").await.is_err());
    assert!(
        catalog
            .has_link("r", "https://x.example/")
            .await
            .expect("among the latest")
    );
    assert!(catalog.has_link("r", "https://y.example/").await.is_err());
    assert!(started.elapsed() < Duration::from_millis(500), "nobody waits for it");
    let status = catalog.status();
    assert!(
        !status.healthy && status.queued == 1 && status.queued_links == 1,
        "{status:?}"
    );
    assert!(status.error.is_some_and(|why| why.contains("onnection refused")));
    server.launch();
    // By itself: nobody drains, nothing is recorded.
    healthy(&catalog).await;
    assert!(breaker.is_closed());
    assert!(catalog.get("r", "a").await.expect("an answer").is_some());
    assert!(catalog.has_link("r", "https://x.example/").await.expect("an answer"));
}

#[tokio::test]
async fn what_is_recorded_while_it_is_stopped_or_killed_is_written_later() {
    let mut server = Server::start();
    let (catalog, breaker) = open(&settings(&server));
    healthy(&catalog).await;
    let mut expected = 0;
    for by_kill in [false, true] {
        // In the middle of traffic: batches are under way all the time.
        for n in 0..40 {
            if n == 20 && by_kill {
                server.kill();
            } else if n == 20 {
                server.stop();
            }
            for m in 0..200 {
                catalog.record(stored(record("r", &format!("{by_kill}/{n}/{m}"), 1)));
                expected += 1;
            }
            if n % 2 == 0 {
                let _ = catalog.drain().await;
            }
        }
        until("known to be away", async || !breaker.is_closed()).await;
        let started = Instant::now();
        assert!(catalog.list(query("")).await.is_err());
        assert!(started.elapsed() < Duration::from_millis(200));
        server.launch();
        healthy(&catalog).await;
        catalog.drain().await.expect("written");
        assert_eq!(objects(&catalog).await, expected);
        assert_eq!(all(&catalog, "limit=1000").await.0.len() as u64, expected);
    }
    assert_eq!(catalog.status().dropped_changes, 0);
}

#[tokio::test]
async fn a_hung_server_is_given_up_and_writes_nothing_twice_or_late() {
    let server = Server::start();
    let (catalog, breaker) = open(&settings(&server));
    healthy(&catalog).await;
    catalog.record(stored(record("r", "a", 1)));
    catalog.drain().await.expect("written");
    for round in 1..=3 {
        server.pause();
        let started = Instant::now();
        catalog.hits("r", "a", "", 1, 200);
        catalog.record(stored(record("r", "passing", 1)));
        // Everybody who asked before it is known to hang has a bound.
        let (listed, found) = tokio::join!(catalog.list(query("")), catalog.get("r", "a"));
        assert!(listed.is_err() && found.is_err());
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        until("known to be away", async || !breaker.is_closed()).await;
        let started = Instant::now();
        assert!(catalog.list(query("")).await.is_err());
        assert!(started.elapsed() < Duration::from_millis(100));
        assert!(breaker.standing().error.is_some());
        // A batch may be waiting in the hung server's socket; what comes after it must not be undone by it.
        catalog.record(removed("r", "passing"));
        server.resume();
        until("written", async || catalog.drain().await.is_ok()).await;
        assert!(breaker.is_closed());
        let record = catalog.get("r", "a").await.expect("an answer").expect("there");
        assert_eq!(record.hits, round);
        assert_eq!(objects(&catalog).await, 1);
    }
}

/// The batch was written, and the answer is lost: it is not counted again.
#[tokio::test]
async fn a_batch_that_is_given_again_is_written_once() {
    use crate::catalog::change::{Batch, Change, ObjectKey, Op};
    let server = Server::start();
    let (catalog, _) = open(&settings(&server));
    healthy(&catalog).await;
    let mut client = server.connect().await;
    let change = |op, hits| Batch {
        objects: vec![(
            ObjectKey {
                remote: "r".into(),
                path: "a".into(),
                form: String::new(),
            },
            Change {
                op,
                hits,
                ..Change::NONE
            },
        )],
        links: Vec::new(),
    };
    let put = change(Op::Put(Box::new(record("r", "a", 1))), 0);
    let hit = change(Op::Touch, 1);
    super::write::batch(&mut client, 7, 1, &put).await.expect("written");
    super::write::batch(&mut client, 7, 2, &hit).await.expect("written");
    super::write::batch(&mut client, 7, 2, &hit).await.expect("known");
    super::write::batch(&mut client, 7, 1, &change(Op::Remove, 0))
        .await
        .expect("known");
    super::write::batch(&mut client, 8, 1, &hit)
        .await
        .expect("another process");
    assert_eq!(
        catalog
            .get("r", "a")
            .await
            .expect("an answer")
            .map(|record| record.hits),
        Some(2)
    );
}

#[tokio::test]
async fn nodes_that_write_the_same_at_once_agree() {
    let server = Server::start();
    let nodes: Vec<Opened> = (0..4).map(|_| open(&settings(&server))).collect();
    for (node, _) in &nodes {
        healthy(node).await;
    }
    let rounds: i64 = 6;
    let paths: i64 = 1_500;
    for round in 0..rounds {
        for (number, (node, _)) in (0..).zip(&nodes) {
            for n in 0..paths {
                // Each in an order of its own.
                let n = (n * 7 + number * 401) % paths;
                node.record(stored(Record {
                    first_seen: 1_000 + round * 10 + number,
                    last_seen: 1_000 + round * 10 + number,
                    ..record("r", &format!("{n}"), (round * 10 + number) as u64)
                }));
                node.hits("r", &format!("{n}"), "", 1, 1_000);
            }
        }
        let (a, b, c, d) = tokio::join!(
            nodes[0].0.drain(),
            nodes[1].0.drain(),
            nodes[2].0.drain(),
            nodes[3].0.drain()
        );
        a.and(b).and(c).and(d).expect("all written");
    }
    let (rows, totals) = all(&nodes[0].0, "limit=1000").await;
    assert_eq!(rows.len() as i64, paths);
    for row in &rows {
        // Of the latest fill, whoever wrote last; and nobody's hit is lost.
        let latest = (rounds - 1) * 10 + 3;
        assert_eq!(
            (row.size as i64, row.first_seen, row.last_seen),
            (latest, 1_000, 1_000 + latest)
        );
        assert_eq!(row.hits as i64, rounds * 4);
    }
    let objects = paths as u64;
    let bytes = objects * rows[0].size;
    assert_eq!(totals, Some(Totals { objects, bytes }));
    assert!(nodes.iter().all(|(node, _)| node.status().healthy));
}

#[tokio::test]
async fn what_the_database_cannot_hold_holds_up_nothing_else() {
    let server = Server::start();
    let (catalog, _) = open(&settings(&server));
    healthy(&catalog).await;
    // Longer than an index takes, and hard to compress.
    let random = |n: u64| {
        format!(
            "{:016x}",
            std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), n)
        )
    };
    let long: String = (0..500).map(random).collect();
    for n in 0..50 {
        catalog.record(stored(record("r", &format!("{n:02}"), 1)));
    }
    catalog.record(stored(record("r", "nul\0", 1)));
    catalog.record(stored(Record {
        etag: Some("\0".into()),
        ..record("r", "25+", 1)
    }));
    catalog.record(stored(record("r", &long, 1)));
    catalog.drain().await.expect("written");
    assert_eq!(objects(&catalog).await, 50);
    assert!(catalog.status().healthy);
}

#[tokio::test]
async fn many_nodes_start_at_once_on_an_empty_database_and_leave_the_rest_alone() {
    let server = Server::start();
    // What others have there.
    server
        .sql(
            "CREATE TABLE public.artifact (id text); INSERT INTO public.artifact VALUES ('theirs');
             CREATE TABLE public.migration (id text); CREATE SCHEMA other; CREATE TABLE other.part (id text);",
        )
        .await;
    let nodes: Vec<Opened> = (0..6).map(|_| open(&settings(&server))).collect();
    for (number, (node, _)) in nodes.iter().enumerate() {
        healthy(node).await;
        node.record(stored(record("r", &format!("{number}"), 1)));
        node.drain().await.expect("written");
    }
    assert_eq!(objects(&nodes[0].0).await, 6);
    let steps = VERSION.to_string();
    assert_eq!(server.sql("SELECT count(*) FROM artifactapi.migration").await, [steps]);
    assert_eq!(server.sql("SELECT id FROM public.artifact").await, ["theirs"]);
    assert_eq!(server.sql("SELECT count(*) FROM public.migration").await, ["0"]);
}

#[tokio::test]
async fn a_newer_schema_is_used_unless_it_says_otherwise() {
    let server = Server::start();
    let (old, breaker) = open(&settings(&server));
    healthy(&old).await;
    // What the next version may do while this one runs.
    let (next, breaking) = (VERSION + 1, VERSION + 2);
    server
        .sql(&format!(
            "ALTER TABLE artifactapi.artifact ADD COLUMN kind text;
             CREATE INDEX artifact_kind ON artifactapi.artifact (kind);
             CREATE TABLE artifactapi.extra (id bigint);
             INSERT INTO artifactapi.migration (version, oldest, program) VALUES ({next}, 1, 'next')",
        ))
        .await;
    let (again, _) = open(&settings(&server));
    healthy(&again).await;
    for catalog in [&old, &again] {
        catalog.record(stored(record("r", "a", 1)));
        catalog.drain().await.expect("written");
        assert_eq!(objects(catalog).await, 1);
    }
    server
        .sql(&format!(
            "INSERT INTO artifactapi.migration (version, oldest, program) VALUES ({breaking}, {breaking}, 'breaking')"
        ))
        .await;
    let (late, _) = open(&settings(&server));
    until("refused", async || {
        let error = late.status().error.unwrap_or_default();
        error.contains(&format!(
            "has version {breaking}, which needs a program that knows version {breaking}; this one knows {VERSION}"
        ))
    })
    .await;
    assert!(late.list(query("")).await.is_err());
    // What runs goes on until it has to connect again.
    assert!(breaker.is_closed());
    assert_eq!(objects(&old).await, 1);
}

#[tokio::test]
async fn what_is_wrong_is_said_without_the_password() {
    let server = Server::start();
    for statement in [
        "CREATE ROLE reader LOGIN PASSWORD 'geheim'",
        "CREATE DATABASE narrow",
        "REVOKE CREATE, TEMPORARY ON DATABASE narrow FROM PUBLIC",
    ] {
        server.sql(statement).await;
    }
    let good = settings(&server);
    let secret = Secret::new("geheim");
    let with = |user: &str, name: &str, password: Option<&Secret>| crate::config::Database {
        user: user.into(),
        name: name.into(),
        password: password.cloned(),
        ..good.clone()
    };
    let cases = [
        (
            with("app", "postgres", Some(&secret)),
            "password authentication failed for user \"app\"; see DBUSER and",
        ),
        (with("app", "postgres", None), "password missing"),
        (
            with("nobody", "postgres", Some(&secret)),
            "password authentication failed for user \"nobody\"",
        ),
        (
            with("reader", "none", Some(&secret)),
            "database \"none\" does not exist; create it, or name another",
        ),
        (
            with("reader", "narrow", Some(&secret)),
            "permission denied for database narrow; DBUSER must be allowed to",
        ),
        (
            crate::config::Database {
                host: "none.invalid".into(),
                ..good.clone()
            },
            "PostgreSQL at none.invalid:",
        ),
    ];
    for (settings, expected) in cases {
        let (catalog, breaker) = open(&settings);
        until(expected, async || {
            catalog.status().error.is_some_and(|error| error.contains(expected))
        })
        .await;
        assert!(!breaker.is_closed());
        let (why, _) = breaker.standing().error.expect("a reason");
        assert!(
            !why.contains("geheim") && !format!("{settings:?}{catalog:?}").contains("geheim"),
            "{why}"
        );
    }
}

#[tokio::test]
async fn a_schema_that_was_made_for_the_user_is_enough() {
    let server = Server::start();
    for statement in [
        "CREATE ROLE worker LOGIN PASSWORD 'geheim'",
        "CREATE ROLE guest LOGIN PASSWORD 'geheim'",
        "CREATE DATABASE narrow",
    ] {
        server.sql(statement).await;
    }
    let narrow = crate::config::Database {
        name: "narrow".into(),
        ..settings(&server)
    };
    let (owner, connection) = tokio_postgres::Config::new()
        .host(&narrow.host)
        .port(narrow.port)
        .user(&narrow.user)
        .password(narrow.password.as_ref().expect("one").reveal())
        .dbname("narrow")
        .connect(NoTls)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    owner
        .batch_execute(
            "REVOKE CREATE, TEMPORARY ON DATABASE narrow FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC;
             CREATE SCHEMA artifactapi AUTHORIZATION worker",
        )
        .await
        .expect("made");
    let as_user = |user: &str| crate::config::Database {
        user: user.into(),
        password: Some(Secret::new("geheim")),
        ..narrow.clone()
    };
    let (worker, _) = open(&as_user("worker"));
    healthy(&worker).await;
    worker.record(stored(record("r", "a", 1)));
    worker.drain().await.expect("written");
    // Whoever may only write rows is served by the tables that are there.
    let (guest, _) = open(&as_user("guest"));
    until("refused", async || {
        guest
            .status()
            .error
            .is_some_and(|error| error.contains("permission denied for schema artifactapi"))
    })
    .await;
    owner
        .batch_execute(
            "GRANT USAGE ON SCHEMA artifactapi TO guest;
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA artifactapi TO guest",
        )
        .await
        .expect("granted");
    healthy(&guest).await;
    guest.hits("r", "a", "", 1, 200);
    guest.record(stored(record("r", "b", 1)));
    guest.drain().await.expect("written");
    assert_eq!(objects(&worker).await, 2);
    // And rights that go are said, and cost nothing that is queued.
    owner
        .batch_execute("REVOKE UPDATE ON artifactapi.artifact FROM guest")
        .await
        .expect("revoked");
    guest.hits("r", "a", "", 1, 200);
    let error = guest.drain().await.expect_err("not allowed").to_string();
    assert!(error.contains("permission denied for table artifact"), "{error}");
    owner
        .batch_execute("GRANT UPDATE ON artifactapi.artifact TO guest")
        .await
        .expect("granted");
    healthy(&guest).await;
    let record = guest.get("r", "a").await.expect("an answer").expect("there");
    assert_eq!(record.hits, 2);
}

#[tokio::test]
async fn connections_are_encrypted_as_told() {
    let mut server = Server::prepare();
    let authority = |name: &str| {
        let mut parameters = rcgen::CertificateParams::new([]).expect("parameters");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().expect("a key");
        rcgen::CertifiedIssuer::self_signed(parameters, key).expect("an authority")
    };
    let (known, other) = (authority("known"), authority("other"));
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()])
        .and_then(|parameters| parameters.signed_by(&key, &known))
        .expect("a certificate");
    let certificate = server.file("server.crt", &certificate.pem());
    let key = server.file("server.key", &key.serialize_pem());
    let known = server.file("known.pem", &known.pem());
    let other = server.file("other.pem", &other.pem());
    server.launch();
    let with = |host: &str, mode, roots: Option<&std::path::PathBuf>| crate::config::Database {
        host: host.into(),
        tls: DatabaseTls {
            mode,
            root_certificates: roots.cloned(),
        },
        ..settings(&server)
    };
    // Without TLS on the server: what demands it gets no connection.
    for (mode, works) in [
        (TlsMode::Disable, true),
        (TlsMode::Prefer, true),
        (TlsMode::Require, false),
    ] {
        let (catalog, breaker) = open(&with("localhost", mode, None));
        match works {
            true => healthy(&catalog).await,
            false => until("refused", async || !breaker.is_closed()).await,
        }
    }
    server.stop();
    server
        .option("ssl=on")
        .option(&format!("ssl_cert_file={}", certificate.display()))
        .option(&format!("ssl_key_file={}", key.display()));
    server.launch();
    let with = |host: &str, mode, roots: Option<&std::path::PathBuf>| crate::config::Database {
        host: host.into(),
        tls: DatabaseTls {
            mode,
            root_certificates: roots.cloned(),
        },
        ..settings(&server)
    };
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE ssl AND application_name LIKE 'artifactapi%'";
    for (settings, expected) in [
        (with("localhost", TlsMode::Disable, None), "0"),
        (with("localhost", TlsMode::Prefer, None), "4"),
        (with("127.0.0.1", TlsMode::Require, None), "4"),
        (with("127.0.0.1", TlsMode::VerifyCa, Some(&known)), "4"),
        (with("localhost", TlsMode::VerifyFull, Some(&known)), "4"),
    ] {
        until("nobody connected", async || {
            let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'artifactapi%'";
            server.sql(count).await == ["0"]
        })
        .await;
        let (catalog, _) = open(&settings);
        healthy(&catalog).await;
        assert_eq!(server.sql(encrypted).await, [expected], "{settings:?}");
        catalog.close().await;
    }
    for settings in [
        with("127.0.0.1", TlsMode::VerifyFull, Some(&known)),
        with("localhost", TlsMode::VerifyCa, Some(&other)),
        with("localhost", TlsMode::VerifyFull, Some(&other)),
        with("localhost", TlsMode::VerifyFull, None),
    ] {
        let (catalog, _) = open(&settings);
        until("refused", async || {
            catalog.status().error.is_some_and(|error| error.contains("TLS"))
        })
        .await;
    }
}
