//! A clock that was ahead, noticed and remembered: what was trusted by it may have been so for too long, also after further
//! starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::freshness::{distrust, is_ahead};
use super::time::{Millis, millis, now_ms};

/// Watches the time of day of one process.
#[derive(Debug)]
pub(super) struct Clock {
    /// Holds the moment before which nothing mutable that was verified is trusted.
    file: PathBuf,
    last: (Instant, Millis),
}

impl Clock {
    /// Takes up what earlier processes noticed below `data_dir`. `kept` is a file there that a running store writes all
    /// the time: one that is dated ahead shows that the clock was ahead when it last ran.
    pub(super) fn open(data_dir: &Path, kept: &Path) -> Self {
        let clock = Clock {
            file: data_dir.join("distrusted"),
            last: (Instant::now(), now_ms()),
        };
        let noticed = fs::read_to_string(&clock.file).ok();
        if let Some(at) = noticed.and_then(|text| text.trim().parse::<Millis>().ok()) {
            distrust(at);
        }
        let saved = fs::metadata(kept).and_then(|meta| meta.modified());
        if saved.is_ok_and(|saved| is_ahead(millis(saved), now_ms())) {
            clock.was_ahead(now_ms());
        }
        clock
    }

    /// Looks whether the clock went back since it was looked at last: then it was ahead before.
    pub(super) fn watch(&mut self) {
        let (before, wall) = self.last;
        let (now, wall_now) = (Instant::now(), now_ms());
        let expected = wall.saturating_add((now - before).as_millis() as u64);
        if is_ahead(expected, wall_now) {
            tracing::warn!(
                seconds = (expected - wall_now) / 1000,
                "the clock went back: what is mutable is verified again"
            );
            self.was_ahead(wall_now);
        }
        self.last = (now, wall_now);
    }

    fn was_ahead(&self, now: Millis) {
        distrust(now);
        let new = self.file.with_extension("new");
        let noted = fs::write(&new, format!("{now}\n")).and_then(|()| fs::rename(&new, &self.file));
        if let Err(error) = noted {
            tracing::warn!(%error, "that the clock was ahead is forgotten by the next start");
        }
    }
}
