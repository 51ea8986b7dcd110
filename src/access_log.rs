//! The access log: one line of JSON for each request. Whoever answers leaves the line in memory, and a thread writes what has
//! gathered. Nobody ever waits for that: what it cannot keep up with is dropped and counted.

mod line;

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::LogTarget;
pub use line::{Answered, Asked, Line};

/// Threads that answer share so many places for what they log.
const PLACES: usize = 16;
/// What may wait in one of them, in bytes.
const MOST: usize = 4 << 20;
/// Lines gather for so long: what a thread answers in that time takes a small part of its place.
const GATHERING: Duration = Duration::from_millis(10);
/// Between two complaints that the log cannot be written.
const QUIET: Duration = Duration::from_secs(60);
/// The last lines may take so long to be written.
const LAST: Duration = Duration::from_secs(2);

/// See the module.
pub struct AccessLog {
    places: [Place; PLACES],
    dropped: AtomicU64,
    reopening: AtomicBool,
    closing: AtomicBool,
    writer: OnceLock<Thread>,
    closed: Mutex<Option<Receiver<()>>>,
}

/// Lines that wait to be written, on cache lines of their own.
#[derive(Default)]
#[repr(align(128))]
struct Place(Mutex<Vec<u8>>);

impl AccessLog {
    /// The log that is written to `target`; `None`: none is.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(target: &LogTarget) -> io::Result<Option<Arc<AccessLog>>> {
        let output = match target {
            LogTarget::Off => return Ok(None),
            LogTarget::Stdout => Output::Stdout(io::stdout()),
            LogTarget::File(path) => Output::File(path.clone(), append(path)?),
        };
        let (closed, ended) = channel();
        let log = Arc::new(AccessLog {
            places: Default::default(),
            dropped: AtomicU64::new(0),
            reopening: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            writer: OnceLock::new(),
            closed: Mutex::new(Some(ended)),
        });
        let writing = Arc::clone(&log);
        let thread = thread::Builder::new().name("access log".into()).spawn(move || {
            writing.write(output);
            let _ = closed.send(());
        })?;
        let _ = log.writer.set(thread.thread().clone());
        Ok(Some(log))
    }

    /// Leaves a line to be written.
    pub fn push(&self, line: &[u8]) {
        let is_first = {
            let mut waiting = self.places[place_of_thread()].0.lock();
            if waiting.len() + line.len() > MOST {
                self.dropped.fetch_add(1, Relaxed);
                return;
            }
            waiting.extend_from_slice(line);
            waiting.len() == line.len()
        };
        if is_first {
            self.wake();
        }
    }

    /// Lines that were never written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Opens the file anew, which somebody has moved away.
    pub fn reopen(&self) {
        self.reopening.store(true, Relaxed);
        self.wake();
    }

    /// Writes what is left, and ends.
    pub fn close(&self) {
        self.closing.store(true, Relaxed);
        self.wake();
        if let Some(ended) = self.closed.lock().take() {
            // Who reads it may hang.
            let _ = ended.recv_timeout(LAST);
        }
    }

    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// Writes what gathers, until the log is closed.
    fn write(&self, mut output: Output) {
        let mut lines = Vec::new();
        let mut complained: Option<Instant> = None;
        // A line was cut off: the next one must not go on where it ends.
        let mut is_torn = false;
        loop {
            let is_last = self.closing.load(Relaxed);
            let is_reopened = self.reopening.swap(false, Relaxed);
            for place in &self.places {
                lines.clear();
                std::mem::swap(&mut *place.0.lock(), &mut lines);
                if lines.is_empty() {
                    continue;
                }
                if let Err((error, written)) = output.write(&lines, is_torn) {
                    let lost = lines[written..].iter().filter(|byte| **byte == b'\n').count();
                    self.dropped.fetch_add(lost as u64, Relaxed);
                    is_torn |= written > 0 && lines[written - 1] != b'\n';
                    if complained.is_none_or(|since| since.elapsed() > QUIET) {
                        tracing::warn!(%error, "the access log cannot be written: lines are dropped");
                        complained = Some(Instant::now());
                    }
                } else {
                    is_torn = false;
                }
            }
            if is_reopened && let Err(error) = output.reopen() {
                tracing::error!(%error, "the access log cannot be opened anew: it goes on in the old file");
            }
            if is_last {
                return;
            }
            if !self.has_work() {
                thread::park();
            }
            if !self.closing.load(Relaxed) {
                thread::sleep(GATHERING);
            }
        }
    }

    fn has_work(&self) -> bool {
        self.closing.load(Relaxed)
            || self.reopening.load(Relaxed)
            || self.places.iter().any(|place| !place.0.lock().is_empty())
    }
}

/// The place of this thread; those that began later share the earlier ones'.
fn place_of_thread() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PLACE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    match PLACE.get() {
        usize::MAX => {
            let place = THREADS.fetch_add(1, Relaxed) % PLACES;
            PLACE.set(place);
            place
        }
        place => place,
    }
}

/// What the lines are written to.
enum Output {
    Stdout(io::Stdout),
    File(std::path::PathBuf, File),
}

impl Output {
    /// # Errors
    /// With how many bytes were written before.
    fn write(&mut self, lines: &[u8], is_torn: bool) -> Result<(), (io::Error, usize)> {
        let to: &mut dyn Write = match self {
            Output::Stdout(stdout) => stdout,
            Output::File(_, file) => file,
        };
        if is_torn {
            to.write_all(b"\n").map_err(|error| (error, 0))?;
        }
        let mut written = 0;
        while written < lines.len() {
            match to.write(&lines[written..]) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), written)),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((error, written)),
            }
        }
        to.flush().map_err(|error| (error, written))
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Output::File(path, file) = self {
            *file = append(path)?;
        }
        Ok(())
    }
}

/// Names and addresses of people stand in it: it is not for everybody.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_to(path: &Path) -> Arc<AccessLog> {
        AccessLog::open(&LogTarget::File(path.to_owned()))
            .unwrap()
            .expect("it is on")
    }

    #[test]
    fn lines_of_all_threads_are_written_and_the_file_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let log = log_to(&path);
        let threads: Vec<_> = (0..40)
            .map(|thread| {
                let log = Arc::clone(&log);
                thread::spawn(move || (0..100).for_each(|n| log.push(format!("{thread} {n}\n").as_bytes())))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let lines = |path: &Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
        while lines(&path) < 4000 {
            thread::yield_now();
        }
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        while !path.exists() {
            thread::yield_now();
        }
        log.push(b"last\n");
        log.close();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "last\n");
        assert_eq!((lines(&moved), log.dropped()), (4000, 0));
    }

    #[test]
    fn what_cannot_be_written_is_dropped_and_counted() {
        let log = log_to(Path::new("/dev/full"));
        let line = [b'x'; 99].iter().copied().chain([b'\n']).collect::<Vec<u8>>();
        for _ in 0..MOST / 100 * 2 {
            log.push(&line);
        }
        log.close();
        assert_eq!(log.dropped(), (MOST / 100 * 2) as u64);
    }
}
