//! What a disk does to what is stored on it: files that cannot be read or are not what they were, no room for another file,
//! folders that cannot be written, and what a hard end leaves behind.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::common::client::Headers;
use crate::common::clients::{program, tool};
use crate::common::server::{Settings, run_binary};
use crate::common::{Gate, Pattern, Proxy, Reply, Response, Upstream, eventually, run};

const MB: u64 = 1_000_000;
/// Only what is smaller than 16 KB is held in memory.
const LITTLE_MEMORY: &str = "cache: {memory_bytes: 1MB, scrub_rate: 0}\n";
/// What is smaller than 1 MB is.
const MEMORY: &str = "cache: {memory_bytes: 64MB, scrub_rate: 0}\n";

// Stored files

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

/// The file that holds what is stored of a path.
#[track_caller]
fn stored(data: &Path, path: &str) -> PathBuf {
    let name = format!("\\u0000{path}\\u0000");
    let holds = |file: &PathBuf| {
        let head = fs::read(file).unwrap_or_default();
        let head = &head[..head.len().min(4096)];
        head.windows(name.len()).any(|part| part == name.as_bytes())
    };
    let files = files_below(&data.join("objects"));
    let file = files.into_iter().find(holds);
    file.unwrap_or_else(|| panic!("{path} is not stored"))
}

/// Changes one bit of a byte, counted from the file's end where `at` is negative.
fn flip(file: &Path, at: i64) {
    let file = OpenOptions::new().read(true).write(true).open(file).expect("opened");
    let length = i64::try_from(file.metadata().expect("its length").len()).expect("a length");
    let at = u64::try_from(if at < 0 { length + at } else { at }).expect("an offset");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");
}

fn cut(file: &Path, length: u64) {
    let file = OpenOptions::new().write(true).open(file).expect("opened");
    file.set_len(length).expect("cut");
}

fn remotes(up: &Upstream) -> String {
    format!("files:\n  base_url: {}\n", up.base())
}

async fn with(up: &Upstream, conf: &str, data: &Path) -> Proxy {
    settings(up, conf, data).start().await
}

fn settings(up: &Upstream, conf: &str, data: &Path) -> Settings {
    Proxy::settings().remotes(&remotes(up)).conf(conf).data_dir(data)
}

async fn health(proxy: &Proxy) -> serde_json::Value {
    proxy.request("GET", "/health", &[], b"").await.ok().json()
}

/// What `/health` says is wrong with the disk.
async fn trouble(proxy: &Proxy) -> String {
    let health = health(proxy).await;
    assert_eq!(health["status"], "degraded", "{health}");
    health["dependencies"]["disk"]["detail"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[track_caller]
fn is_cut(answer: &Response) {
    assert!(!answer.complete, "a whole answer of {} bytes", answer.body.len());
}

#[test]
fn a_file_that_was_cut_costs_one_client_its_answer() {
    run(async {
        let up = Upstream::start().await;
        let data = tempfile::tempdir().unwrap();
        let body = Pattern::new(1, 5 * MB);
        up.under("/", move |_| Reply::ok(body));
        let proxy = with(&up, LITTLE_MEMORY, data.path()).await;
        for (number, (path, headers, length)) in [
            ("plain", vec![], 2 * MB),
            ("empty", vec![], 0),
            ("range", vec![("Range", "bytes=3000000-")], 4 * MB),
            ("several", vec![("Range", "bytes=0-9,4500000-4600000")], 4 * MB),
        ]
        .into_iter()
        .enumerate()
        {
            proxy.fetch("files", path).await.is("remote", body.whole());
            proxy.until_cached("files", path).await.is("cache", body.whole());
            let file = stored(data.path(), path);
            cut(&file, length);
            let mut connection = proxy.connect().await;
            connection
                .send("GET", &crate::common::server::at("files", path), &headers, b"")
                .await;
            if connection.try_read_head("GET").await.is_ok() {
                let got = connection.read_body().await;
                assert!(!connection.is_complete(), "{path}: {} bytes", got.len());
            }
            // Whoever comes next gets it anew, and it is stored again.
            proxy.fetch("files", path).await.is("remote", body.whole());
            proxy.until_cached("files", path).await.is("cache", body.whole());
            assert_eq!(up.count("GET", &format!("/{path}")), 2, "{path}");
            let damaged = proxy.metric("artifactapi_damaged_objects_total", &[]).await;
            assert_eq!(damaged, number as f64 + 1.0);
            proxy.wait_for_log(&format!("files {path}")).await;
        }
        assert!(trouble(&proxy).await.contains("files several"));
        assert_eq!(proxy.log().matches("DAMAGED").count(), 4, "{}", proxy.log());
        // Downloads go on, so that ready it is.
        proxy.request("GET", "/health/ready", &[], b"").await.ok();
    });
}

/// Becomes the program that it is given, of which the system call with this number (on x86_64, on aarch64) fails as one does
/// on a broken disk. Needs no privilege.
const FAILING: &str = "
import ctypes, os, platform, struct, sys
number = int(sys.argv[1].split(',')[['x86_64', 'aarch64'].index(platform.machine())])
step = lambda code, yes, no, value: struct.pack('HBBI', code, yes, no, value)
steps = [step(0x20, 0, 0, 0), step(0x15, 0, 1, number), step(6, 0, 0, 0x00050005), step(6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(steps))
class Filter(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(len(steps), ctypes.addressof(code)))) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[2], sys.argv[2:])
";

/// Reads of bodies, which are all that this program makes in this way.
const PREADV2: &str = "327,286";

#[test]
fn a_disk_that_cannot_be_read_is_in_nobodys_way() {
    run(async {
        let up = Upstream::start().await;
        let data = tempfile::tempdir().unwrap();
        let (small, large) = (Pattern::new(1, 10_000), Pattern::new(2, 5 * MB));
        up.reply("/small", Reply::ok(small))
            .reply("/large", Reply::ok(large))
            .reply("/chunked", Reply::ok(large).chunked())
            .reply("/stored", Reply::ok(large));
        let mut proxy = with(&up, LITTLE_MEMORY, data.path()).await;
        proxy.fetch("files", "stored").await.ok();
        proxy.until_cached("files", "stored").await;
        proxy.stop().await;
        let python = tool("venv/bin/python");
        let python = python.to_str().unwrap();
        let proxy = settings(&up, LITTLE_MEMORY, data.path())
            .under(&[python, "-c", FAILING, PREADV2])
            .start()
            .await;
        // One is cut.
        let mut connection = proxy.connect().await;
        connection
            .send("GET", &crate::common::server::at("files", "stored"), &[], b"")
            .await;
        if connection.try_read_head("GET").await.is_ok() {
            connection.read_body().await;
            assert!(!connection.is_complete());
        }
        for _ in 0..3 {
            proxy.fetch("files", "stored").await.is("remote", large.whole());
            proxy.fetch("files", "small").await.is("remote", small.whole());
            proxy.fetch("files", "large").await.is("remote", large.whole());
            proxy.fetch("files", "chunked").await.is("remote", large.whole());
        }
        let why = trouble(&proxy).await;
        assert!(why.contains("Input/output error"), "{why}");
        proxy.wait_for_log("NOTHING CAN BE STORED").await;
        assert_eq!(proxy.metric("artifactapi_dependency_up", &["disk"]).await, 0.0);
    });
}

/// Becomes the program that it is given, for which a file system hangs whenever it has to wait for a body.
const HANGING: &str = "
import ctypes, os, platform, struct, sys
of = lambda numbers: numbers[['x86_64', 'aarch64'].index(platform.machine())]
step = lambda code, yes, no, value: struct.pack('HBBI', code, yes, no, value)
# preadv2 would have to wait, and pread64 of more than what stands before a body is answered by nobody.
steps = [step(0x20, 0, 0, 0), step(0x15, 3, 0, of((327, 286))), step(0x15, 0, 4, of((17, 67))), step(0x20, 0, 0, 32),
         step(0x35, 1, 2, 8192), step(6, 0, 0, 0x0005000b), step(6, 0, 0, 0x7fc00000), step(6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(steps))
class Filter(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
listener = libc.syscall(of((317, 277)), 1, 8, ctypes.byref(Filter(len(steps), ctypes.addressof(code))))
assert listener >= 0, os.strerror(ctypes.get_errno())
os.set_inheritable(listener, True)
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn a_read_that_hangs_ends_and_is_in_nobodys_way() {
    run(async {
        let up = Upstream::start().await;
        let data = tempfile::tempdir().unwrap();
        let body = Pattern::new(1, 5 * MB);
        up.reply("/stored", Reply::ok(body));
        let mut proxy = with(&up, LITTLE_MEMORY, data.path()).await;
        proxy.fetch("files", "stored").await.ok();
        proxy.until_cached("files", "stored").await;
        proxy.stop().await;
        let python = tool("venv/bin/python");
        let proxy = settings(&up, LITTLE_MEMORY, data.path())
            .under(&[python.to_str().unwrap(), "-c", HANGING])
            .start()
            .await;
        let mut connection = proxy.connect().await;
        let target = crate::common::server::at("files", "stored");
        connection.send("GET", &target, &[], b"").await;
        // Others are answered meanwhile.
        for _ in 0..3 {
            proxy.request("GET", "/health/live", &[], b"").await.ok();
        }
        if connection.try_read_head("GET").await.is_ok() {
            connection.read_body().await;
            assert!(!connection.is_complete());
        }
        for _ in 0..2 {
            proxy.fetch("files", "stored").await.is("remote", body.whole());
        }
        let why = trouble(&proxy).await;
        assert!(why.contains("did not answer in time"), "{why}");
    });
}

#[test]
fn a_flipped_bit_is_not_served_twice() {
    run(async {
        let up = Upstream::start().await;
        let body = |path: &str| match path {
            "/large" => Pattern::new(1, 3 * MB),
            _ => Pattern::new(2, 100_000),
        };
        up.under("/", move |seen| Reply::ok(body(&seen.path)));
        // Where it is flipped: in the body's first, one in the middle, its last byte, and in what stands before it.
        let small = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let places = [-100_000, -50_000, -1, 24, 40, 81, 88, 150];
        let data = tempfile::tempdir().unwrap();
        let mut proxy = with(&up, MEMORY, data.path()).await;
        for path in small.into_iter().chain(["large"]) {
            proxy.fetch("files", path).await.ok();
            proxy.until_cached("files", path).await;
        }
        proxy.stop().await;
        for (path, place) in small.iter().zip(places) {
            flip(&stored(data.path(), path), place);
        }
        flip(&stored(data.path(), "large"), -2_000_000);
        up.forget();
        proxy.launch().await;
        // What is read whole before it is sent is fetched again, and nobody sees it.
        for path in small {
            let whole = body(path).whole();
            proxy.fetch("files", path).await.is("remote", &whole);
            proxy.until_cached("files", path).await.is("cache", &whole);
            assert_eq!(up.count("GET", &format!("/{path}")), 1, "{path}");
        }
        // What is longer is not ended.
        let large = body("/large");
        let first = proxy.fetch("files", "large").await;
        is_cut(&first);
        assert!(first.body.len() < large.whole().len());
        proxy.fetch("files", "large").await.is("remote", large.whole());
        proxy.until_cached("files", "large").await.is("cache", large.whole());
        assert_eq!(proxy.metric("artifactapi_damaged_objects_total", &[]).await, 9.0);
        let why = trouble(&proxy).await;
        assert!(why.contains("files large") && why.contains("digest"), "{why}");
        // It is compared once: what is right is not read again for that.
        proxy.restart().await;
        for _ in 0..2 {
            proxy.fetch("files", "large").await.is("cache", large.whole());
        }
        assert_eq!(health(&proxy).await["status"], "ok");
    });
}

#[test]
fn what_was_damaged_before_it_had_a_name_is_not_served() {
    run(async {
        let up = Upstream::start().await;
        let data = tempfile::tempdir().unwrap();
        let (body, gate) = (Pattern::new(1, 5 * MB), Gate::new());
        up.sequence("/x", vec![Reply::ok(body).pause_at(3 * MB, &gate), Reply::ok(body)]);
        let proxy = with(&up, LITTLE_MEMORY, data.path()).await;
        let mut connection = proxy.connect().await;
        connection
            .send("GET", &crate::common::server::at("files", "x"), &[], b"")
            .await;
        connection.read_head("GET").await;
        connection.read_body_until(3 * MB as usize).await;
        // The file that it grows in loses what was written: the rest is written behind a hole.
        let files = fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap().flatten();
        let is_growing = |file: &PathBuf| {
            let name = fs::read_link(file).unwrap_or_default();
            name.starts_with(data.path().join("objects")) && fs::metadata(file).is_ok_and(|file| file.len() > MB)
        };
        let file = files
            .map(|entry| entry.path())
            .find(is_growing)
            .expect("a file that grows");
        cut(&file, 100_000);
        gate.open();
        connection.read_body().await;
        assert!(connection.is_complete());
        eventually(Duration::from_secs(10), "it is stored", async || {
            proxy.metric("artifactapi_growing_objects", &[]).await == 0.0
        })
        .await;
        // One finds out.
        eventually(Duration::from_secs(10), "it is fetched again", async || {
            let answer = proxy.fetch("files", "x").await;
            assert!(
                !answer.complete || answer.body == body.whole(),
                "wrong bytes as a whole"
            );
            answer.complete && up.count("GET", "/x") == 2
        })
        .await;
        proxy.until_cached("files", "x").await.is("cache", body.whole());
    });
}

#[test]
fn the_scrubber_finds_what_nobody_asks_for() {
    run(async {
        let up = Upstream::start().await;
        let data = tempfile::tempdir().unwrap();
        let body = |number: usize| Pattern::new(number as u64, 200_000);
        up.under("/", move |seen| Reply::ok(body(seen.path[1..].parse().unwrap())));
        let mut proxy = with(&up, LITTLE_MEMORY, data.path()).await;
        for number in 0..12 {
            proxy.fetch("files", &number.to_string()).await.ok();
            proxy.until_cached("files", &number.to_string()).await;
        }
        proxy.stop().await;
        let damaged = stored(data.path(), "7");
        flip(&damaged, -100_000);
        up.forget();
        let mut proxy = with(&up, "cache: {memory_bytes: 1MB, scrub_rate: 1GB}\n", data.path()).await;
        eventually(Duration::from_secs(20), "a round of the scrubber", async || {
            proxy.metric("artifactapi_scrub_rounds_total", &[]).await == 1.0
        })
        .await;
        let metric = async |name: &str| proxy.metric(name, &[]).await;
        assert_eq!(metric("artifactapi_damaged_objects_total").await, 1.0);
        assert_eq!(metric("artifactapi_scrubbed_objects_total").await, 12.0);
        assert_eq!(metric("artifactapi_scrubbed_bytes_total").await, 2_400_000.0);
        assert_eq!(proxy.metric("artifactapi_scrub_progress_ratio", &[]).await, 1.0);
        assert!(!damaged.exists());
        let listed = proxy.request("GET", "/api/v1/artifacts", &[], b"").await.ok().json();
        assert_eq!(listed["total"], 11, "{listed}");
        assert!(trouble(&proxy).await.contains("files 7"));
        assert_eq!(up.total(), 0);
        proxy.fetch("files", "7").await.is("remote", body(7).whole());
        proxy.fetch("files", "8").await.is("cache", body(8).whole());
        // A round a day: the next start goes on where this one was.
        proxy.restart().await;
        assert_eq!(proxy.metric("artifactapi_scrubbed_objects_total", &[]).await, 0.0);
    });
}

#[test]
fn verify_finds_removes_and_tells_what_is_damaged() {
    run(async {
        let up = Upstream::start().await;
        let data = tempfile::tempdir().unwrap();
        let body = Pattern::new(1, 500_000);
        up.under("/", move |_| Reply::ok(body));
        let proxy = with(&up, LITTLE_MEMORY, data.path()).await;
        for path in ["a", "b", "c", "d"] {
            proxy.fetch("files", path).await.ok();
            proxy.until_cached("files", path).await;
        }
        let folder = data.path().to_str().unwrap();
        let remotes = proxy.remotes_file();
        let remotes = remotes.to_str().unwrap();
        let verify = || {
            run_binary(
                proxy.folder(),
                &[],
                &["verify", "--data-dir", folder, "--remotes", remotes],
            )
        };
        let ended = verify();
        assert_eq!(ended.code, Some(0), "{}", ended.text());
        assert!(
            ended
                .stdout
                .contains("4 objects, 2000000 bytes: 0 damaged, 0 that cannot be read now"),
            "{}",
            ended.text()
        );
        // While the service runs, and has them open.
        let (a, b) = (stored(data.path(), "a"), stored(data.path(), "b"));
        flip(&a, -1);
        flip(&b, 30);
        cut(&stored(data.path(), "c"), 200_000);
        let ended = verify();
        assert_eq!(ended.code, Some(1), "{}", ended.text());
        assert!(
            ended.stdout.contains("4 objects") && ended.stdout.contains("3 damaged"),
            "{}",
            ended.text()
        );
        assert!(
            ended.stdout.contains("damaged: files a: its body does not match"),
            "{}",
            ended.text()
        );
        assert!(!a.exists() && !b.exists());
        let ended = verify();
        assert_eq!(ended.code, Some(0), "{}", ended.text());
        for path in ["a", "b", "c"] {
            // Nobody gets what it was.
            let mut connection = proxy.connect().await;
            connection
                .send("GET", &crate::common::server::at("files", path), &[], b"")
                .await;
            if connection.try_read_head("GET").await.is_ok() {
                connection.read_body().await;
                assert!(!connection.is_complete(), "{path}");
            }
            proxy.fetch("files", path).await.is("remote", body.whole());
        }
        proxy.fetch("files", "d").await.is("cache", body.whole());
        let nothing = run_binary(
            proxy.folder(),
            &[],
            &["verify", "--data-dir", "none", "--remotes", remotes],
        );
        assert_eq!(nothing.code, Some(1), "{}", nothing.text());
        assert!(nothing.stderr.contains("none cannot be verified"), "{}", nothing.text());
    });
}

// File systems

/// A file system in memory, gone with the test.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    #[track_caller]
    pub(crate) fn new(at: &Path, options: &str) -> Mounted {
        fs::create_dir_all(at).expect("a folder");
        let mounted = Mounted(at.to_owned());
        mount(&["-t", "tmpfs", "-o", options, "none"], at);
        mounted
    }

    #[track_caller]
    fn again(&self, options: &str) {
        mount(&["-o", &format!("remount,{options}")], &self.0);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new(program("umount")).arg("-l").arg(&self.0).status();
    }
}

#[track_caller]
fn mount(options: &[&str], at: &Path) {
    let output = Command::new(program("mount")).args(options).arg(at).output();
    let output = output.expect("mount can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "this test mounts a tmpfs, which takes root: {said}"
    );
}

fn free_files(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).expect("a file system").f_ffree
}

#[test]
fn room_is_made_for_files_as_for_bytes() {
    run(async {
        let up = Upstream::start().await;
        up.under("/", |seen| Reply::ok(seen.path.clone()));
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let _mounted = Mounted::new(&data, "size=300m,nr_inodes=400");
        let mut proxy = with(&up, MEMORY, &data).await;
        for number in 0..400 {
            let path = format!("/{number}");
            proxy.fetch("files", &path).await.is("remote", &path);
            if number % 40 == 0 {
                proxy.until_cached("files", &path).await;
            }
        }
        assert!(free_files(&data) >= 20, "{} inodes are free", free_files(&data));
        proxy.until_cached("files", "399").await;
        assert!(proxy.metric("artifactapi_evictions_total", &[]).await > 200.0);
        assert!(!proxy.log_contains("NOTHING CAN BE STORED"), "{}", proxy.log());
        // Others take all that is left, and what this program would need to start.
        proxy.kill();
        for number in 0.. {
            if fs::write(data.join(format!("other-{number}")), "").is_err() {
                break;
            }
        }
        assert_eq!(free_files(&data), 0);
        proxy.launch().await;
        for number in 1000..1050 {
            let path = format!("/{number}");
            proxy.fetch("files", &path).await.is("remote", &path);
        }
        // As soon as the walk has counted them, some of what is stored goes for what is new.
        eventually(Duration::from_secs(20), "it is stored again", async || {
            proxy.fetch("files", "1050").await.ok().source() == "cache"
        })
        .await;
        eventually(Duration::from_secs(20), "it says that all is well", async || {
            health(&proxy).await["dependencies"]["disk"]["status"] == "ok"
        })
        .await;
    });
}

/// A proxy that has stored `x`, and may write no more.
async fn read_only(up: &Upstream, folder: &Path) -> (Mounted, Proxy) {
    let data = folder.join("data");
    let mounted = Mounted::new(&data, "size=100m");
    let mut proxy = with(up, LITTLE_MEMORY, &data).await;
    proxy.fetch("files", "x").await.ok();
    proxy.until_cached("files", "x").await;
    proxy.stop().await;
    mounted.again("ro");
    proxy.launch().await;
    (mounted, proxy)
}

#[test]
fn a_read_only_folder_is_served_from_and_said() {
    run(async {
        let up = Upstream::start().await;
        let (x, y) = (Pattern::new(1, 300_000), Pattern::new(2, 300_000));
        up.reply("/x", Reply::ok(x)).reply("/y", Reply::ok(y));
        let folder = tempfile::tempdir().unwrap();
        let (mounted, proxy) = read_only(&up, folder.path()).await;
        proxy.wait_for_log("NOTHING CAN BE STORED").await;
        for _ in 0..2 {
            proxy.fetch("files", "x").await.is("cache", x.whole());
            proxy.fetch("files", "y").await.is("remote", y.whole());
        }
        let why = trouble(&proxy).await;
        assert!(why.contains("Read-only file system"), "{why}");
        mounted.again("rw");
        eventually(Duration::from_secs(20), "it says that all is well", async || {
            health(&proxy).await["status"] == "ok"
        })
        .await;
        proxy.fetch("files", "y").await.ok();
        proxy.until_cached("files", "y").await.is("cache", y.whole());
        proxy.wait_for_log("can be stored again").await;
    });
}

#[test]
fn what_a_flush_cannot_remove_is_not_served() {
    run(async {
        let up = Upstream::start().await;
        let x = Pattern::new(1, 300_000);
        up.reply("/x", Reply::ok(x));
        let folder = tempfile::tempdir().unwrap();
        let (_mounted, proxy) = read_only(&up, folder.path()).await;
        proxy.fetch("files", "x").await.is("cache", x.whole());
        let done = proxy.request("PUT", "/cache/flush", &[], b"{}").await.ok().json();
        assert_eq!(done["deleted"], 0, "{done}");
        for _ in 0..2 {
            proxy.fetch("files", "x").await.is("remote", x.whole());
        }
    });
}

#[test]
fn a_folder_that_cannot_be_made_is_a_mistake_in_its_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    fs::write(
        folder.path().join("remotes.yaml"),
        "remotes:\n  files:\n    base_url: http://127.0.0.1:1\n",
    )
    .unwrap();
    let listen = crate::common::refused().to_string();
    let ended = run_binary(
        folder.path(),
        &[],
        &["serve", "--listen", &listen, "--data-dir", "file/data"],
    );
    assert_eq!(ended.code, Some(1), "{}", ended.text());
    assert!(ended.stderr.contains("file/data"), "{}", ended.text());
}

#[test]
fn what_keeps_files_from_being_named_is_said_and_mended() {
    run(async {
        let up = Upstream::start().await;
        up.under("/", |seen| Reply::ok(seen.path.clone()));
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let proxy = with(&up, MEMORY, &data).await;
        let is_stored = async |path: &str| {
            proxy.fetch("files", path).await.is("remote", path);
            proxy.until_cached("files", path).await;
        };
        is_stored("/1").await;
        // What is only missing is made again, and nobody notices.
        fs::remove_dir_all(data.join("tmp")).unwrap();
        is_stored("/2").await;
        fs::remove_dir_all(data.join("objects")).unwrap();
        is_stored("/3").await;
        assert!(!proxy.log_contains("NOTHING CAN BE STORED"), "{}", proxy.log());
        let is_well = async || health(&proxy).await["status"] == "ok";
        assert!(is_well().await);
        // A file system of its own, to which no file can be linked.
        let mounted = Mounted::new(&data.join("tmp"), "size=1m");
        for number in 10..15 {
            let path = format!("/{number}");
            proxy.fetch("files", &path).await.is("remote", &path);
        }
        let why = trouble(&proxy).await;
        assert!(why.contains("cross-device link"), "{why}");
        assert_eq!(
            proxy.log().matches("NOTHING CAN BE STORED").count(),
            1,
            "{}",
            proxy.log()
        );
        assert!(proxy.metric("artifactapi_store_failures_total", &[]).await >= 5.0);
        assert_eq!(proxy.metric("artifactapi_dependency_up", &["disk"]).await, 0.0);
        drop(mounted);
        eventually(Duration::from_secs(20), "it says that all is well", is_well).await;
        is_stored("/16").await;
        // A folder that cannot be made.
        fs::rename(data.join("objects"), data.join("aside")).unwrap();
        fs::write(data.join("objects"), "").unwrap();
        proxy.fetch("files", "/20").await.is("remote", "/20");
        let why = trouble(&proxy).await;
        assert!(why.contains("Not a directory") || why.contains("File exists"), "{why}");
        fs::remove_file(data.join("objects")).unwrap();
        fs::rename(data.join("aside"), data.join("objects")).unwrap();
        eventually(Duration::from_secs(20), "it says that all is well", is_well).await;
        is_stored("/21").await;
    });
}

/// What is taken of the disk, folders included.
fn taken(folder: &Path) -> u64 {
    let own = fs::metadata(folder).map_or(0, |metadata| metadata.blocks() * 512);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let below = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => taken(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    own + below.sum::<u64>()
}

#[test]
fn folders_count_towards_the_bound_and_empty_ones_go() {
    run(async {
        let up = Upstream::start().await;
        up.under("/", |seen| Reply::ok(seen.path.clone()));
        let data = tempfile::tempdir().unwrap();
        let conf = "cache: {disk_bytes: 2MB, disk_min_free: 0%, memory_bytes: 8MB}\n";
        let proxy = with(&up, conf, data.path()).await;
        let mut connection = proxy.connect().await;
        for number in 0..600 {
            let target = crate::common::server::at("files", &number.to_string());
            connection.get(&target).await.ok();
        }
        let objects = data.path().join("objects");
        eventually(Duration::from_secs(10), "the bound holds", async || {
            taken(&objects) < 2_100_000
        })
        .await;
        assert!(
            files_below(&objects).len() > 100,
            "{} are left",
            files_below(&objects).len()
        );
        // Of what is gone no folder is left.
        proxy.request("PUT", "/cache/flush", &[], b"{}").await.ok();
        eventually(Duration::from_secs(10), "all is flushed", async || {
            fs::read_dir(&objects).unwrap().count() == 0
        })
        .await;
        assert_eq!(proxy.metric("artifactapi_tier_bytes", &["disk"]).await, 0.0);
    });
}

// A hard end

#[test]
fn what_was_evicted_just_before_a_kill_is_not_listed_for_ever() {
    run(async {
        let up = Upstream::start().await;
        up.under("/", |_| Reply::ok(Pattern::new(1, 100_000)));
        let data = tempfile::tempdir().unwrap();
        let conf = |bound: &str| format!("cache: {{disk_bytes: {bound}, disk_min_free: 0%, memory_bytes: 1MB}}\n");
        let mut proxy = with(&up, &conf("100MB"), data.path()).await;
        for number in 0..60 {
            proxy.fetch("files", &number.to_string()).await.ok();
        }
        let listed = async |proxy: &Proxy| {
            let listed = proxy.request("GET", "/api/v1/artifacts", &[], b"").await.ok().json();
            listed["total"].as_u64().expect("a number")
        };
        eventually(Duration::from_secs(10), "all are listed", async || {
            listed(&proxy).await == 60
        })
        .await;
        proxy.stop().await;
        // What a process does that evicts, and ends before it has told anybody.
        let objects = data.path().join("objects");
        for file in files_below(&objects).into_iter().take(40) {
            fs::remove_file(file).unwrap();
        }
        let proxy = with(&up, &conf("100MB"), data.path()).await;
        eventually(Duration::from_secs(10), "what is gone is not listed", async || {
            listed(&proxy).await == 20
        })
        .await;
        // What is stored is found by its entry still.
        let flushed = proxy.request("PUT", "/cache/flush", &[], b"{}").await.ok().json();
        assert_eq!(flushed["deleted"], 20, "{flushed}");
        assert!(files_below(&objects).is_empty());
    });
}

#[test]
fn what_a_kill_left_on_its_way_to_its_name_goes_while_it_runs() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&remotes(&up)).await;
        let folder = proxy.data_dir().join("tmp");
        let (old, young) = (folder.join("4711-1"), folder.join("4711-2"));
        for file in [&old, &young] {
            fs::write(file, "left").unwrap();
        }
        let file = OpenOptions::new().write(true).open(&old).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(90)).unwrap();
        drop(file);
        eventually(Duration::from_secs(10), "what is old goes", async || !old.exists()).await;
        // It may be somebody's yet.
        assert!(young.exists());
    });
}
