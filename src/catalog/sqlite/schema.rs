//! The catalogue's tables in SQLite, and how a file gets to have them.
//!
//! Steps go forward only and must leave a file that the version before can still use: during an upgrade both run on it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::catalog::backend::CatalogError;

/// What each step does; the number of steps done is the file's `user_version`.
const STEPS: &[&str] = &[
    "
    CREATE TABLE artifact (
        id            INTEGER PRIMARY KEY,
        remote        TEXT NOT NULL,
        path          TEXT NOT NULL,
        form          TEXT NOT NULL,
        class         INTEGER NOT NULL, -- 0 immutable, 1 mutable
        size          INTEGER NOT NULL,
        digest        TEXT NOT NULL,
        content_type  TEXT NOT NULL,
        etag          TEXT,
        last_modified TEXT,
        published_at  INTEGER,
        first_seen    INTEGER NOT NULL,
        last_seen     INTEGER NOT NULL,
        hits          INTEGER NOT NULL,
        fresh_until   INTEGER,          -- NULL: for ever
        key           TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX artifact_object ON artifact (remote, path, form);

    -- One for each order of a listing. A listing over several remotes or classes merges one walk for each, so that
    -- these two never have to be searched for along an index.
    CREATE INDEX artifact_path       ON artifact (remote, class, path);
    CREATE INDEX artifact_size       ON artifact (remote, class, size);
    CREATE INDEX artifact_last_seen  ON artifact (remote, class, last_seen);
    CREATE INDEX artifact_hits       ON artifact (remote, class, hits);
    CREATE INDEX artifact_first_seen ON artifact (remote, class, first_seen);

    -- Totals, kept by triggers: right whichever version of the program writes.
    CREATE TABLE part (
        remote  TEXT NOT NULL,
        class   INTEGER NOT NULL,
        objects INTEGER NOT NULL,
        bytes   INTEGER NOT NULL,
        PRIMARY KEY (remote, class)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER artifact_inserted AFTER INSERT ON artifact BEGIN
        INSERT INTO part (remote, class, objects, bytes) VALUES (new.remote, new.class, 1, new.size)
            ON CONFLICT (remote, class) DO UPDATE SET objects = objects + 1, bytes = bytes + new.size;
    END;
    CREATE TRIGGER artifact_deleted AFTER DELETE ON artifact BEGIN
        UPDATE part SET objects = objects - 1, bytes = bytes - old.size
            WHERE remote = old.remote AND class = old.class;
    END;
    CREATE TRIGGER artifact_updated AFTER UPDATE OF class, size ON artifact
        WHEN old.class <> new.class OR old.size <> new.size BEGIN
        UPDATE part SET objects = objects - 1, bytes = bytes - old.size
            WHERE remote = old.remote AND class = old.class;
        INSERT INTO part (remote, class, objects, bytes) VALUES (new.remote, new.class, 1, new.size)
            ON CONFLICT (remote, class) DO UPDATE SET objects = objects + 1, bytes = bytes + new.size;
    END;

    -- Links to other hosts that an index named: the first 16 bytes of the SHA-256 of each URL.
    CREATE TABLE link (
        remote TEXT NOT NULL,
        hash   BLOB NOT NULL,
        PRIMARY KEY (remote, hash)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- Files that were uploaded here.
    CREATE TABLE local_file (
        remote       TEXT NOT NULL,
        path         TEXT NOT NULL,
        size         INTEGER NOT NULL,
        sha256       TEXT NOT NULL,     -- 64 hex digits
        content_type TEXT NOT NULL,
        created_at   INTEGER NOT NULL,
        updated_at   INTEGER NOT NULL,
        who          TEXT NOT NULL,
        PRIMARY KEY (remote, path)
    ) STRICT, WITHOUT ROWID;
",
    POLICIES,
];

/// What policies keep.
const POLICIES: &str = "
    -- Artifacts that people let through though their remote holds them back.
    CREATE TABLE let_through (
        remote  TEXT NOT NULL,
        path    TEXT NOT NULL,
        reason  TEXT NOT NULL,
        who     TEXT NOT NULL,
        made_at INTEGER NOT NULL,
        PRIMARY KEY (remote, path)
    ) STRICT, WITHOUT ROWID;

    -- When a file was first seen, where a remote goes by that: the first 16 bytes of the SHA-256 of index and file. Under
    -- another hash, the date that clients are told of it.
    CREATE TABLE first_seen (
        remote TEXT NOT NULL,
        hash   BLOB NOT NULL,
        at     INTEGER NOT NULL,
        PRIMARY KEY (remote, hash)
    ) STRICT, WITHOUT ROWID;

    -- The digest that each immutable object was stored with last, also where it is stored no more. Kept by triggers: right
    -- whichever version of the program writes.
    CREATE TABLE seen (
        remote TEXT NOT NULL,
        path   TEXT NOT NULL,
        form   TEXT NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (remote, path, form)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO seen (remote, path, form, digest) SELECT remote, path, form, digest FROM artifact WHERE class = 0;
    CREATE TRIGGER artifact_seen AFTER INSERT ON artifact WHEN new.class = 0 BEGIN
        INSERT INTO seen (remote, path, form, digest) VALUES (new.remote, new.path, new.form, new.digest)
            ON CONFLICT (remote, path, form) DO UPDATE SET digest = excluded.digest;
    END;
    CREATE TRIGGER artifact_seen_anew AFTER UPDATE OF class, digest ON artifact
        WHEN new.class = 0 AND (old.class <> new.class OR old.digest <> new.digest) BEGIN
        INSERT INTO seen (remote, path, form, digest) VALUES (new.remote, new.path, new.form, new.digest)
            ON CONFLICT (remote, path, form) DO UPDATE SET digest = excluded.digest;
    END;
";

/// What this program knows.
pub(in crate::catalog) const VERSION: usize = STEPS.len();

/// How long a statement waits for another process, or for the writer.
const BUSY: Duration = Duration::from_secs(2);

/// Opens a file for writing, making it and its tables where they are missing.
pub(super) fn open_writer(file: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY)?;
    // Before anything is changed: a newer file is left as it is.
    version(&connection, file)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // A power cut may cost the last batches, never the file.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "cache_size", -16_384)?; // KiB
    migrate(&mut connection, file)?;
    // Looks at a page of each table; a whole check would take as long as the file is large.
    connection
        .execute_batch("SELECT count(*) FROM part; SELECT id FROM artifact LIMIT 1; SELECT hash FROM link LIMIT 1")?;
    Ok(connection)
}

/// Opens a file that is there, for reading.
pub(super) fn open_reader(file: &Path) -> rusqlite::Result<Connection> {
    // Reading needs to write too: to the index of the write-ahead log.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cache_size", -4_096)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(connection)
}

fn version(connection: &Connection, file: &Path) -> Result<usize, OpenError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match usize::try_from(found) {
        Ok(version) if version <= VERSION => Ok(version),
        _ => Err(OpenError::Newer(CatalogError::Newer {
            file: file.display().to_string(),
            found,
            known: i64::try_from(VERSION).unwrap_or(i64::MAX),
        })),
    }
}

fn migrate(connection: &mut Connection, file: &Path) -> Result<(), OpenError> {
    if version(connection, file)? == VERSION {
        return Ok(());
    }
    // Under the write lock, and looked at again there: another process may be doing the same.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from = version(&transaction, file)?;
    for step in &STEPS[from..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", i64::try_from(VERSION).unwrap_or(i64::MAX))?;
    transaction.commit()?;
    Ok(())
}

/// Why a file was not opened.
#[derive(Debug)]
pub(super) enum OpenError {
    Newer(CatalogError),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        OpenError::Sqlite(error)
    }
}

impl From<OpenError> for CatalogError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Newer(error) => error,
            OpenError::Sqlite(error) => unavailable(&error),
        }
    }
}

/// What callers are told of `error`.
pub(super) fn unavailable(error: &rusqlite::Error) -> CatalogError {
    CatalogError::Unavailable(error.to_string())
}
