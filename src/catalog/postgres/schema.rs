//! The catalogue's tables in PostgreSQL, and how a database gets to have them.
//!
//! Steps only add, so that the program before can go on using what the next one has changed: during a rolling upgrade
//! both do. A step that has to break this says so, and then programs that do not know it keep away from the database.

use tokio_postgres::Client;

use super::describe::describe;

/// Held while tables are made or changed, so that one node does it ("artifact" in ASCII).
const LOCK: i64 = 0x6172_7469_6661_6374;

struct Step {
    /// The oldest version of the schema whose programs can use what this step leaves.
    oldest: i32,
    sql: &'static str,
}

const STEPS: &[Step] = &[FIRST, POLICIES];

/// What policies keep.
const POLICIES: Step = Step {
    oldest: 1,
    sql: r#"
    -- Artifacts that people let through though their remote holds them back.
    CREATE TABLE artifactapi.let_through (
        remote  text COLLATE "C" NOT NULL,
        path    text COLLATE "C" NOT NULL,
        reason  text NOT NULL,
        who     text NOT NULL,
        made_at bigint NOT NULL,
        PRIMARY KEY (remote, path)
    );

    -- When a file was first seen, where a remote goes by that: the first 16 bytes of the SHA-256 of index and file. Under
    -- another hash, the date that clients are told of it.
    CREATE TABLE artifactapi.first_seen (
        remote text COLLATE "C" NOT NULL,
        hash   bytea NOT NULL,
        at     bigint NOT NULL,
        PRIMARY KEY (remote, hash)
    );

    -- The digest that each immutable object was stored with last, also where it is stored no more. Kept by triggers: right
    -- whichever version of the program writes. Whoever writes a row here holds that of the object.
    CREATE TABLE artifactapi.seen (
        remote text COLLATE "C" NOT NULL,
        path   text COLLATE "C" NOT NULL,
        form   text COLLATE "C" NOT NULL,
        digest text NOT NULL,
        PRIMARY KEY (remote, path, form)
    );
    INSERT INTO artifactapi.seen (remote, path, form, digest)
        SELECT remote, path, form, digest FROM artifactapi.artifact WHERE class = 0;
    CREATE FUNCTION artifactapi.see_artifacts() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO artifactapi.seen AS s (remote, path, form, digest)
                SELECT remote, path, form, digest FROM added WHERE class = 0 ORDER BY remote, path, form
                ON CONFLICT (remote, path, form) DO UPDATE SET digest = excluded.digest
                WHERE s.digest <> excluded.digest;
        ELSE
            INSERT INTO artifactapi.seen AS s (remote, path, form, digest)
                SELECT a.remote, a.path, a.form, a.digest FROM added AS a JOIN gone AS g ON g.id = a.id
                WHERE a.class = 0 AND (g.class <> a.class OR g.digest <> a.digest)
                ORDER BY a.remote, a.path, a.form
                ON CONFLICT (remote, path, form) DO UPDATE SET digest = excluded.digest
                WHERE s.digest <> excluded.digest;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER artifact_seen AFTER INSERT ON artifactapi.artifact
        REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION artifactapi.see_artifacts();
    CREATE TRIGGER artifact_seen_anew AFTER UPDATE ON artifactapi.artifact
        REFERENCING OLD TABLE AS gone NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION artifactapi.see_artifacts();
"#,
};

const FIRST: Step = Step {
    oldest: 1,
    sql: r#"
    CREATE TABLE artifactapi.artifact (
        id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        remote        text COLLATE "C" NOT NULL,
        path          text COLLATE "C" NOT NULL,
        form          text COLLATE "C" NOT NULL,
        class         smallint NOT NULL, -- 0 immutable, 1 mutable
        size          bigint NOT NULL,
        digest        text NOT NULL,
        content_type  text NOT NULL,
        etag          text,
        last_modified text,
        published_at  bigint,
        first_seen    bigint NOT NULL,
        last_seen     bigint NOT NULL,
        hits          bigint NOT NULL,
        fresh_until   bigint,            -- NULL: for ever
        key           text NOT NULL,
        stored_at     bigint NOT NULL    -- when what size, digest and so on say was stored
    ) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
    CREATE UNIQUE INDEX artifact_object ON artifactapi.artifact (remote, path, form);

    -- One for each order of a listing. A listing over several remotes or classes merges one walk for each, so that
    -- these two never have to be searched for along an index.
    CREATE INDEX artifact_path       ON artifactapi.artifact (remote, class, path, id) INCLUDE (size);
    CREATE INDEX artifact_size       ON artifactapi.artifact (remote, class, size, id);
    CREATE INDEX artifact_last_seen  ON artifactapi.artifact (remote, class, last_seen, id);
    CREATE INDEX artifact_hits       ON artifactapi.artifact (remote, class, hits, id);
    CREATE INDEX artifact_first_seen ON artifactapi.artifact (remote, class, first_seen, id);

    -- Totals, kept by triggers: right whichever version of the program writes. The rows of a remote and class are to be
    -- added up: a row that every batch changed would make the nodes wait for each other.
    CREATE TABLE artifactapi.part (
        remote  text COLLATE "C" NOT NULL,
        class   smallint NOT NULL,
        objects bigint NOT NULL,
        bytes   numeric NOT NULL
    );
    CREATE FUNCTION artifactapi.count_artifacts() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO artifactapi.part (remote, class, objects, bytes)
                SELECT remote, class, count(*), sum(size) FROM added GROUP BY remote, class;
        ELSIF TG_OP = 'DELETE' THEN
            INSERT INTO artifactapi.part (remote, class, objects, bytes)
                SELECT remote, class, -count(*), -sum(size) FROM gone GROUP BY remote, class;
        ELSE
            INSERT INTO artifactapi.part (remote, class, objects, bytes)
                SELECT remote, class, sum(objects), sum(bytes) FROM (
                    SELECT remote, class, 1 AS objects, size AS bytes FROM added
                    UNION ALL
                    SELECT remote, class, -1, -size FROM gone
                ) AS changed
                GROUP BY remote, class HAVING sum(objects) <> 0 OR sum(bytes) <> 0;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER artifact_inserted AFTER INSERT ON artifactapi.artifact
        REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION artifactapi.count_artifacts();
    CREATE TRIGGER artifact_deleted AFTER DELETE ON artifactapi.artifact
        REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION artifactapi.count_artifacts();
    CREATE TRIGGER artifact_updated AFTER UPDATE ON artifactapi.artifact
        REFERENCING OLD TABLE AS gone NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION artifactapi.count_artifacts();

    -- Links to other hosts that an index named: the first 16 bytes of the SHA-256 of each URL.
    CREATE TABLE artifactapi.link (
        remote text COLLATE "C" NOT NULL,
        hash   bytea NOT NULL,
        PRIMARY KEY (remote, hash)
    );

    -- The last batch that each process has written, so that none is written twice, or late.
    CREATE TABLE artifactapi.writer (
        id      bigint PRIMARY KEY,
        batch   bigint NOT NULL,
        seen_at timestamptz NOT NULL
    );

    -- Files that were uploaded here.
    CREATE TABLE artifactapi.local_file (
        remote       text COLLATE "C" NOT NULL,
        path         text COLLATE "C" NOT NULL,
        size         bigint NOT NULL,
        sha256       text NOT NULL,      -- 64 hex digits
        content_type text NOT NULL,
        created_at   bigint NOT NULL,
        updated_at   bigint NOT NULL,
        who          text NOT NULL,
        PRIMARY KEY (remote, path)
    );
"#,
};

/// What this program knows.
pub(super) const VERSION: i32 = STEPS.len() as i32;

/// Makes the schema and its tables, or brings them up to date. Waits while another node does the same.
///
/// # Errors
/// What to tell the operator: rights are missing, or the schema is of a later program.
pub(super) async fn migrate(client: &mut Client) -> Result<(), String> {
    if is_current(client).await? {
        return Ok(());
    }
    let from = run(client).await.map_err(|error| describe(&error))?;
    if from < VERSION {
        tracing::info!(from, to = VERSION, "the catalogue's schema was brought up to date");
    }
    match is_current(client).await? {
        true => Ok(()),
        false => Err("the catalogue's schema could not be brought up to date".to_owned()),
    }
}

/// Whether there is nothing to be done, which needs no more rights than reading.
async fn is_current(client: &Client) -> Result<bool, String> {
    let there = "SELECT to_regclass('artifactapi.migration') IS NOT NULL";
    let row = client.query_typed_one(there, &[]).await;
    if !row.map_err(|error| describe(&error))?.get::<_, bool>(0) {
        return Ok(false);
    }
    let done = "SELECT coalesce(max(version), 0), coalesce(max(oldest), 0) FROM artifactapi.migration";
    let row = client.query_typed_one(done, &[]).await;
    let row = row.map_err(|error| describe(&error))?;
    let (version, oldest): (i32, i32) = (row.get(0), row.get(1));
    if oldest > VERSION {
        return Err(format!(
            "the catalogue's schema has version {version}, which needs a program that knows version {oldest}; this one \
             knows {VERSION}: run the newer program"
        ));
    }
    Ok(version >= VERSION)
}

/// Does the steps that are missing, and says how many were there.
async fn run(client: &mut Client) -> Result<i32, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    // An index over millions of rows takes its time.
    transaction
        .batch_execute("SET LOCAL statement_timeout = '5min'; SET LOCAL lock_timeout = '1min'")
        .await?;
    let lock = format!("SELECT pg_advisory_xact_lock({LOCK})");
    transaction.batch_execute(&lock).await?;
    // `IF NOT EXISTS` would ask for the right to create schemas even where there is nothing to create.
    let there = "SELECT to_regnamespace('artifactapi') IS NOT NULL";
    if !transaction.query_typed_one(there, &[]).await?.get::<_, bool>(0) {
        transaction.batch_execute("CREATE SCHEMA artifactapi").await?;
    }
    transaction
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS artifactapi.migration (
                 version integer PRIMARY KEY,
                 oldest  integer NOT NULL, -- the version that a program must know at least
                 done_at timestamptz NOT NULL DEFAULT now(),
                 program text NOT NULL
             )",
        )
        .await?;
    let done = "SELECT coalesce(max(version), 0) FROM artifactapi.migration";
    let from: i32 = transaction.query_typed_one(done, &[]).await?.get(0);
    for (step, version) in STEPS.iter().zip(1..) {
        if version > from {
            transaction.batch_execute(step.sql).await?;
            let note = format!(
                "INSERT INTO artifactapi.migration (version, oldest, program) VALUES ({version}, {}, '{}')",
                step.oldest,
                env!("CARGO_PKG_VERSION")
            );
            transaction.batch_execute(&note).await?;
        }
    }
    transaction.commit().await?;
    Ok(from)
}
