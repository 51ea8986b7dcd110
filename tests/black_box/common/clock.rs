//! A wrong clock for one program: a library that is loaded before all others and moves what the system says of the time of
//! day, and of nothing else.

use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    static long ahead;
    if (!real) {
        const char *seconds = getenv(\"CLOCK_AHEAD\");
        ahead = seconds ? atol(seconds) : 0;
        real = dlsym(RTLD_NEXT, \"clock_gettime\");
    }
    int result = real(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += ahead;
    return result;
}
";

/// What a program's environment needs for a clock that is so many `seconds` ahead.
pub struct Clock {
    folder: tempfile::TempDir,
}

impl Clock {
    /// Builds the library.
    pub fn new() -> Clock {
        let folder = tempfile::tempdir().expect("a folder");
        let source = folder.path().join("clock.c");
        std::fs::write(&source, SOURCE).expect("written");
        let mut command = Command::new("cc");
        command
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(folder.path().join("clock.so"));
        let built = command.arg(source).arg("-ldl").status();
        assert!(built.expect("a C compiler, which links Rust's programs, too").success());
        Clock { folder }
    }

    pub fn env(&self, seconds: i64) -> [(&'static str, String); 2] {
        let library: PathBuf = self.folder.path().join("clock.so");
        [
            ("LD_PRELOAD", library.display().to_string()),
            ("CLOCK_AHEAD", seconds.to_string()),
        ]
    }
}
