//! A bound on memory that the system keeps.

use std::fs;
use std::path::{Path, PathBuf};

/// A control group of this test's own; dropping it removes it, once nothing runs in it.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// One that may use so many bytes of memory. Needs root, or a part of the tree that this user may change.
    #[track_caller]
    pub fn with_memory(bytes: u64) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").expect("this process's control groups");
        let mut said = String::new();
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let (root, limit) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => continue,
            };
            // Below one's own; in a container that shows another place, at the root of what is mounted.
            for parent in [format!("{root}{path}"), root.to_owned()] {
                let folder = Path::new(&parent).join(format!("artifactapi-test-{}", std::process::id()));
                match fs::create_dir(&folder).and_then(|()| fs::write(folder.join(limit), bytes.to_string())) {
                    Ok(()) => return Cgroup(folder),
                    Err(error) => {
                        said.push_str(&format!("{}: {error}\n", folder.display()));
                        let _ = fs::remove_dir(&folder);
                    }
                }
            }
        }
        panic!("this test needs a memory control group (as root), and got none:\n{said}");
    }

    /// Where a process writes its id to be in it.
    pub fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
