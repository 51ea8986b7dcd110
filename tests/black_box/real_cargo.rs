//! cargo through the proxy: builds, updates, searches; with the set-up that README shows.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::common::clients::{Home, Output, readme_block};
use crate::common::packages::{Crate, serve_crates};
use crate::common::{Proxy, Reply, Upstream, run_for};
use serde_json::json;

/// The toolchain that these tests are built by: `cargo` in the search path may be a program that picks one by the home.
fn toolchain(program: &str) -> PathBuf {
    Path::new(env!("CARGO")).with_file_name(program)
}

/// A project of its own, in a home of its own, that wants this.
fn project(proxy: &Proxy, dependencies: &str) -> Home {
    let home = Home::new();
    home.write(
        "Cargo.toml",
        &format!(
            "[package]\nname = \"project\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[dependencies]\n{dependencies}\n"
        ),
    );
    home.write("src/main.rs", "fn main() { println!(\"{}\", outer::say()); }\n");
    home.write(
        ".cargo/config.toml",
        &readme_block(
            "[source.crates-io]",
            proxy.address(),
            ("remote/crates/", "remote/rust/"),
        ),
    );
    home
}

async fn cargo(home: &Home, args: &[&str]) -> Output {
    let mut command = home.command(toolchain("cargo"));
    command
        .env("RUSTC", toolchain("rustc"))
        .env("CARGO_NET_RETRY", "0")
        .args(args);
    home.run(command).await
}

async fn registry(crates: &[Crate]) -> (Upstream, Upstream) {
    let (index, files) = (Upstream::start().await, Upstream::start().await);
    serve_crates(&index, &files, crates);
    (index, files)
}

fn remote(index: &Upstream, lines: &str) -> String {
    format!(
        "rust:\n  base_url: {}/index\n  package: cargo\n  {lines}\n",
        index.base()
    )
}

#[test]
fn what_is_held_is_not_chosen_and_says_why_where_it_is_locked() {
    run_for(Duration::from_secs(300), async {
        let new = SystemTime::now() - Duration::from_secs(24 * 3600);
        let crates = [
            Crate::new("outer", "1.2.0", &[]),
            Crate::new("outer", "1.3.0", &[]).published(new),
        ];
        let (index, _files) = registry(&crates).await;
        let held = Proxy::start(&remote(&index, "quarantine_new: true\n  quarantine_days: 3")).await;
        let first = project(&held, "outer = \"1\"");
        assert_eq!(cargo(&first, &["run", "--quiet"]).await.ok().stdout, "outer 1.2.0\n");
        // A lock file that was made where nothing is held.
        let open = Proxy::start(&remote(&index, "description: x")).await;
        let other = project(&open, "outer = \"1\"");
        assert_eq!(cargo(&other, &["run", "--quiet"]).await.ok().stdout, "outer 1.3.0\n");
        let locked = project(&held, "outer = \"1\"");
        locked.write("Cargo.lock", &other.read("Cargo.lock"));
        let said = cargo(&locked, &["build", "--locked"]).await.fails().text();
        assert!(said.contains("held back until"), "{said}");
    });
}

#[test]
fn a_project_is_built_and_built_again_without_upstream() {
    run_for(Duration::from_secs(300), async {
        let crates = [
            Crate::new("outer", "1.2.0", &[("in-ner", "^2"), ("A", "1")]),
            Crate::new("in-ner", "2.0.1", &[]),
            Crate::new("A", "1.0.0", &[]),
        ];
        let (index, files) = registry(&crates).await;
        let proxy = Proxy::start(&remote(&index, "description: x")).await;
        let said = "outer 1.2.0, in-ner 2.0.1, A 1.0.0\n";
        let first = project(&proxy, "outer = \"1\"");
        assert_eq!(cargo(&first, &["run", "--quiet"]).await.ok().stdout, said);
        // The lock file names the registry that is replaced, and is good without the proxy.
        let lock = first.read("Cargo.lock");
        assert!(
            lock.contains("registry+https://github.com/rust-lang/crates.io-index"),
            "{lock}"
        );
        assert!(!lock.contains("127.0.0.1"), "{lock}");
        for upstream in [&index, &files] {
            upstream.switch_off().await;
        }
        let again = project(&proxy, "outer = \"1\"");
        again.write("Cargo.lock", &lock);
        assert_eq!(cargo(&again, &["run", "--quiet", "--locked"]).await.ok().stdout, said);
        let fresh = project(&proxy, "outer = \"1\"");
        assert_eq!(cargo(&fresh, &["run", "--quiet"]).await.ok().stdout, said);
        for one in &crates {
            assert_eq!(
                files.count("GET", &format!("/crates/{}", one.download())),
                1,
                "{}",
                one.name
            );
        }
    });
}

#[test]
fn an_update_is_seen_and_what_is_unchanged_is_not_downloaded_again() {
    run_for(Duration::from_secs(300), async {
        let (old, new) = (Crate::new("outer", "1.0.0", &[]), Crate::new("outer", "1.1.0", &[]));
        let (index, files) = registry(std::slice::from_ref(&old)).await;
        let proxy = Proxy::start(&remote(&index, "cache: {mutable_ttl: 0}")).await;
        let home = project(&proxy, "outer = \"1\"");
        cargo(&home, &["fetch"]).await.ok();
        index.forget();
        cargo(&home, &["update"]).await.ok();
        assert!(home.read("Cargo.lock").contains("1.0.0"));
        let asked: Vec<_> = index
            .log()
            .into_iter()
            .filter(|seen| seen.path.ends_with("/outer"))
            .collect();
        assert!(!asked.is_empty());
        assert!(
            asked.iter().all(|seen| seen.header("if-none-match").is_some()),
            "{asked:?}"
        );
        serve_crates(&index, &files, &[old.clone(), new.clone()]);
        let said = cargo(&home, &["update"]).await.ok().stderr;
        assert!(said.contains("1.0.0 -> v1.1.0"), "{said}");
        assert_eq!(cargo(&home, &["run", "--quiet"]).await.ok().stdout, "outer 1.1.0\n");
    });
}

#[test]
fn cargo_tells_what_this_proxy_says() {
    run_for(Duration::from_secs(300), async {
        let (index, files) = registry(&[Crate::new("outer", "1.0.0", &[])]).await;
        let found = json!({
            "crates": [{"name": "outer", "max_version": "1.0.0", "description": "of the test"}], "meta": {"total": 1},
        });
        files.reply("/api/v1/crates?q=outer&per_page=10", Reply::ok(found.to_string()));
        let proxy = Proxy::start(&remote(&index, "immutable_patterns: []")).await;
        let home = project(&proxy, "nothing-of-this-name = \"1\"");
        let output = cargo(&home, &["fetch"]).await.fails();
        assert!(output.stderr.contains("no matching package"), "{}", output.stderr);
        let output = cargo(&home, &["search", "--registry", "artifactapi", "outer"])
            .await
            .ok();
        assert!(output.stdout.contains("outer = \"1.0.0\""), "{}", output.text());
        home.write("src/lib.rs", "");
        home.write(
            "Cargo.toml",
            "[package]\nname = \"project\"\nversion = \"1.0.0\"\nedition = \"2021\"\n",
        );
        let publish = [
            "publish",
            "--registry",
            "artifactapi",
            "--token",
            "x",
            "--no-verify",
            "--allow-dirty",
        ];
        let output = cargo(&home, &publish).await.fails();
        assert!(output.stderr.contains("use the registry itself"), "{}", output.stderr);
        assert_eq!(files.count("PUT", "*"), 0);
        // The reason for a refusal is shown.
        let refused = project(&proxy, "outer = \"1\"");
        let output = cargo(&refused, &["fetch"]).await.fails();
        assert!(
            output.stderr.contains("no pattern of this remote allows the path"),
            "{}",
            output.stderr
        );
    });
}
