//! The catalogue in a SQLite file: the default, which needs no server.
//!
//! One connection writes, on the writer's thread; a few read, on the blocking pool of whoever asks. The write-ahead log
//! keeps them out of each other's way, and lets two processes share the file during an upgrade.

mod let_through;
mod scan;
pub(super) mod schema;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior, named_params, params};
use tokio::sync::Semaphore;

use super::backend::{Backend, CatalogError, Found, Scan};
use super::change::{Batch, Change, NameHash, ObjectKey, Op};
use super::column::{class_number, number};
use super::let_through::LetThrough;
use super::record::Record;
use crate::exact_url::shown_path;
use scan::{COLUMNS, read_record};
use schema::{OpenError, open_reader, open_writer, unavailable};

/// Questions answered at once. Further ones wait: listings must not take the machine from downloads.
const READERS: usize = 3;
/// How long they wait.
const READ_WAIT: Duration = Duration::from_secs(5);
/// Where the file has room for a number of the program's own.
const MARK: &str = "application_id";
/// Damaged files that are kept beside the catalogue.
const MAX_CORRUPT: u32 = 9;

/// See the module.
pub(super) struct Sqlite {
    writer: Mutex<Option<Connection>>,
    readers: Arc<Readers>,
    healthy_at_start: bool,
}

/// What questions share with the blocking tasks that answer them.
struct Readers {
    file: PathBuf,
    permits: Arc<Semaphore>,
    /// With the generation of the file that they have open.
    idle: Mutex<Vec<(u64, Connection)>>,
    /// Grows when the file is replaced.
    generation: AtomicU64,
    /// A reader found the file damaged; the writer replaces it.
    damaged: AtomicBool,
}

impl Sqlite {
    /// Opens or makes `catalog.db` in `dir`. A file that cannot be opened for now is tried again at every write.
    pub(super) fn open(dir: &Path) -> Result<Sqlite, CatalogError> {
        let sqlite = Sqlite {
            writer: Mutex::new(None),
            readers: Arc::new(Readers {
                file: dir.join("catalog.db"),
                permits: Arc::new(Semaphore::new(READERS)),
                idle: Mutex::default(),
                generation: AtomicU64::new(0),
                damaged: AtomicBool::new(false),
            }),
            healthy_at_start: false,
        };
        let mut healthy = true;
        match sqlite.connect() {
            Ok(connection) => *sqlite.writer.lock() = Some(connection),
            Err(error @ CatalogError::Newer { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the catalogue does not open; it is tried again");
                healthy = false;
            }
        }
        Ok(Sqlite {
            healthy_at_start: healthy,
            ..sqlite
        })
    }

    fn connect(&self) -> Result<Connection, CatalogError> {
        let file = &self.readers.file;
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir)
                .map_err(|error| CatalogError::Unavailable(format!("{}: {error}", dir.display())))?;
        }
        let mut opened = open_writer(file);
        // Tried twice: between the first try and now another process may have put a new file there.
        for last in [false, true] {
            match opened {
                Err(OpenError::Sqlite(error)) if is_corrupt(&error) => {
                    if last {
                        self.move_aside(&error.to_string())?;
                    }
                    opened = open_writer(file);
                }
                other => return Ok(other?),
            }
        }
        Ok(opened?)
    }

    /// Puts a damaged file out of the way. What it held is only a list: it fills again with what is stored from now on.
    fn move_aside(&self, why: &str) -> Result<(), CatalogError> {
        let file = &self.readers.file;
        let aside = |n: u32, tail: &str| {
            let mut name = file.clone().into_os_string();
            name.push(format!(".corrupt-{n}{tail}"));
            PathBuf::from(name)
        };
        // When all numbers are taken, the last one's file goes.
        let n = (1..MAX_CORRUPT)
            .find(|n| !aside(*n, "").exists())
            .unwrap_or(MAX_CORRUPT);
        // A write-ahead log without its file must not be left to a new one, so it goes first.
        for tail in ["-wal", "-shm", ""] {
            let mut from = file.clone().into_os_string();
            from.push(tail);
            match std::fs::rename(&from, aside(n, tail)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CatalogError::Unavailable(format!(
                        "{} is damaged ({why}) and cannot be moved aside: {error}",
                        file.display()
                    )));
                }
                _ => {}
            }
        }
        self.readers.generation.fetch_add(1, Ordering::AcqRel);
        tracing::error!(error = why, kept = %aside(n, "").display(), "the catalogue is damaged: a new one is begun");
        Ok(())
    }

    fn write(&self, batch: &Batch) -> Result<(), CatalogError> {
        let mut writer = self.writer.lock();
        if self.readers.damaged.swap(false, Ordering::AcqRel) {
            *writer = None;
            self.move_aside("found while reading it")?;
        }
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        match write_batch(&mut connection, batch) {
            Ok(()) => {
                *writer = Some(connection);
                Ok(())
            }
            Err(error) if is_corrupt(&error) => {
                drop(connection);
                self.move_aside(&error.to_string())?;
                Err(unavailable(&error))
            }
            Err(error) => {
                // What is only busy or full keeps its connection; anything else may be cured by a new one.
                let code = error.sqlite_error_code();
                if matches!(
                    code,
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
                ) {
                    *writer = Some(connection);
                }
                Err(unavailable(&error))
            }
        }
    }

    /// Changes something at once, on a connection of its own: the writer's may be in the middle of a batch.
    async fn change<F>(&self, change: F) -> Result<(), CatalogError>
    where
        F: FnOnce(&mut Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        let file = self.readers.file.clone();
        let changing = move || {
            let mut connection = open_writer(&file)?;
            // What was answered for is there after a power cut, too.
            connection.pragma_update(None, "synchronous", "full")?;
            change(&mut connection).map_err(OpenError::from)
        };
        let changed = tokio::task::spawn_blocking(changing).await;
        let changed = changed.map_err(|error| CatalogError::Unavailable(error.to_string()))?;
        Ok(changed?)
    }

    async fn read<T, F>(&self, question: F) -> Result<T, CatalogError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = self.readers.clone();
        let permit = tokio::time::timeout(READ_WAIT, readers.permits.clone().acquire_owned())
            .await
            .map_err(|_| CatalogError::Busy("too many questions wait"))?
            .map_err(|_| CatalogError::Closed)?;
        let answer = tokio::task::spawn_blocking(move || {
            // Held until the answer is there, even if nobody waits for it any more.
            let _permit = permit;
            readers.answer(question)
        });
        answer
            .await
            .unwrap_or_else(|error| Err(CatalogError::Unavailable(error.to_string())))
    }
}

impl Readers {
    fn answer<T>(&self, question: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, CatalogError> {
        let now = self.generation.load(Ordering::Acquire);
        let idle = {
            let mut idle = self.idle.lock();
            idle.retain(|(generation, _)| *generation == now);
            idle.pop()
        };
        let connection = match idle {
            Some((_, connection)) => Ok(connection),
            None => open_reader(&self.file),
        };
        let answered = connection.and_then(|mut connection| Ok((question(&mut connection)?, connection)));
        match answered {
            Ok((answer, connection)) => {
                self.idle.lock().push((now, connection));
                Ok(answer)
            }
            Err(error) => {
                if is_corrupt(&error) && self.generation.load(Ordering::Acquire) == now {
                    self.damaged.store(true, Ordering::Release);
                }
                Err(unavailable(&error))
            }
        }
    }
}

#[async_trait]
impl Backend for Sqlite {
    async fn apply(&self, batch: &Batch) -> Result<(), CatalogError> {
        self.write(batch)
    }

    async fn scan(&self, question: Scan) -> Result<Found, CatalogError> {
        self.read(move |connection| scan::run(connection, &question)).await
    }

    async fn get(&self, remote: &str, path: &str) -> Result<Option<Record>, CatalogError> {
        let (remote, path) = (remote.to_owned(), path.to_owned());
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM artifact WHERE remote = ?1 AND path = ?2 ORDER BY form LIMIT 1");
            connection
                .prepare_cached(&sql)?
                .query_row(params![remote, path], read_record)
                .optional()
        })
        .await
    }

    async fn seen_digest(&self, remote: &str, path: &str, form: &str) -> Result<Option<String>, CatalogError> {
        let (remote, path, form) = (remote.to_owned(), path.to_owned(), form.to_owned());
        self.read(move |connection| {
            let sql = "SELECT digest FROM seen WHERE remote = ?1 AND path = ?2 AND form = ?3";
            connection
                .prepare_cached(sql)?
                .query_row(params![remote, path, form], |row| row.get(0))
                .optional()
        })
        .await
    }

    async fn has_link(&self, remote: &str, link: NameHash) -> Result<bool, CatalogError> {
        let remote = remote.to_owned();
        self.read(move |connection| {
            let mut statement = connection.prepare_cached("SELECT 1 FROM link WHERE remote = ?1 AND hash = ?2")?;
            statement.exists(params![remote, link.0])
        })
        .await
    }

    async fn last_modified(&self, remote: &str, paths: &[String]) -> Result<HashMap<String, i64>, CatalogError> {
        let (remote, paths) = (remote.to_owned(), paths.to_vec());
        self.read(move |connection| {
            let sql = "SELECT max(published_at) FROM artifact WHERE remote = ?1 AND path = ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let mut found = HashMap::new();
            for path in paths {
                let at: Option<i64> = statement.query_row(params![remote, path], |row| row.get(0))?;
                found.extend(at.map(|at| (path, at)));
            }
            Ok(found)
        })
        .await
    }

    async fn earliest(&self, remote: &str, names: &[(NameHash, i64)]) -> Result<HashMap<NameHash, i64>, CatalogError> {
        let (file, remote, names) = (self.readers.file.clone(), remote.to_owned(), names.to_vec());
        let see = move || {
            let mut connection = open_writer(&file)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut seen = HashMap::new();
            {
                let mut insert = transaction.prepare(
                    "INSERT INTO first_seen (remote, hash, at) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET at = min(at, excluded.at) RETURNING at",
                )?;
                for (name, at) in names {
                    let at = insert.query_row(params![remote, name.0, at], |row| row.get(0))?;
                    seen.insert(name, at);
                }
            }
            transaction.commit()?;
            Ok(seen)
        };
        let seen = tokio::task::spawn_blocking(see).await;
        let seen: Result<_, OpenError> = seen.map_err(|error| CatalogError::Unavailable(error.to_string()))?;
        Ok(seen?)
    }

    async fn mark(&self) -> Result<i32, CatalogError> {
        self.read(|connection| connection.pragma_query_value(None, MARK, |row| row.get(0)))
            .await
    }

    async fn set_mark(&self, mark: i32) -> Result<(), CatalogError> {
        self.change(move |connection| connection.pragma_update(None, MARK, mark))
            .await
    }

    async fn let_through(&self) -> Result<Vec<LetThrough>, CatalogError> {
        self.read(let_through::all).await
    }

    async fn keep_let_through(&self, artifact: LetThrough) -> Result<(), CatalogError> {
        self.change(move |connection| let_through::keep(connection, &artifact))
            .await
    }

    async fn forget_let_through(&self, remote: &str, paths: Vec<String>) -> Result<(), CatalogError> {
        let remote = remote.to_owned();
        self.change(move |connection| let_through::forget(connection, &remote, &paths))
            .await
    }

    fn healthy_at_start(&self) -> bool {
        self.healthy_at_start
    }

    async fn close(&self) {
        // The last connection of all puts the log into the file; so the readers' go first.
        self.readers.idle.lock().clear();
        *self.writer.lock() = None;
    }
}

fn write_batch(connection: &mut Connection, batch: &Batch) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (key, change) in &batch.objects {
        match write_change(&transaction, key, change) {
            // One row that the schema does not take must not hold up all that come after it.
            Err(error) if is_of_the_row(&error) => {
                tracing::error!(remote = key.remote, path = %shown_path(&key.path), %error, "the catalogue cannot hold this object");
            }
            other => other?,
        }
    }
    if !batch.links.is_empty() {
        let mut insert = transaction.prepare_cached("INSERT OR IGNORE INTO link (remote, hash) VALUES (?1, ?2)")?;
        for (remote, link) in &batch.links {
            insert.execute(params![remote, link.0])?;
        }
    }
    transaction.commit()
}

fn write_change(transaction: &Transaction<'_>, key: &ObjectKey, change: &Change) -> rusqlite::Result<()> {
    match &change.op {
        Op::Touch => {
            transaction
                .prepare_cached(
                    "UPDATE artifact SET hits = hits + :hits, last_seen = max(last_seen, :last_seen),
                         fresh_until = CASE WHEN :refreshed THEN :fresh_until ELSE fresh_until END
                     WHERE remote = :remote AND path = :path AND form = :form",
                )?
                .execute(named_params! {
                    ":hits": number(change.hits),
                    ":last_seen": change.last_seen,
                    ":refreshed": change.fresh_until.is_some(),
                    ":fresh_until": change.fresh_until.flatten(),
                    ":remote": key.remote,
                    ":path": key.path,
                    ":form": key.form,
                })?;
        }
        Op::Remove => delete(transaction, key)?,
        Op::Put(record) => put(transaction, record, change)?,
        Op::Renew(record) => {
            delete(transaction, key)?;
            put(transaction, record, change)?;
        }
    }
    Ok(())
}

fn delete(transaction: &Transaction<'_>, key: &ObjectKey) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM artifact WHERE remote = ?1 AND path = ?2 AND form = ?3")?
        .execute(params![key.remote, key.path, key.form])?;
    Ok(())
}

fn put(transaction: &Transaction<'_>, record: &Record, change: &Change) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO artifact (remote, path, form, class, size, digest, content_type, etag, last_modified,
                 published_at, first_seen, last_seen, hits, fresh_until, key)
             VALUES (:remote, :path, :form, :class, :size, :digest, :content_type, :etag, :last_modified,
                 :published_at, :first_seen, :last_seen, :hits, :fresh_until, :key)
             ON CONFLICT (remote, path, form) DO UPDATE SET
                 class = excluded.class, size = excluded.size, digest = excluded.digest,
                 content_type = excluded.content_type, etag = excluded.etag, last_modified = excluded.last_modified,
                 published_at = excluded.published_at, last_seen = max(last_seen, excluded.last_seen),
                 hits = hits + excluded.hits, fresh_until = excluded.fresh_until, key = excluded.key",
        )?
        .execute(named_params! {
            ":remote": record.remote,
            ":path": record.path,
            ":form": record.form,
            ":class": class_number(record.class),
            ":size": number(record.size),
            ":digest": record.digest,
            ":content_type": record.content_type,
            ":etag": record.etag,
            ":last_modified": record.last_modified,
            ":published_at": record.published_at,
            ":first_seen": record.first_seen,
            ":last_seen": record.last_seen.max(change.last_seen),
            ":hits": number(record.hits.saturating_add(change.hits)),
            ":fresh_until": change.fresh_until.unwrap_or(record.fresh_until),
            ":key": record.key,
        })?;
    Ok(())
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn is_of_the_row(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::ToSqlConversionFailure(_))
        || matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch)
        )
}
