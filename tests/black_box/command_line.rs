//! The command line, run as people run it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::clients::{Output, bounded};
use crate::common::packages::{IndexForm, Wheel, serve_pypi};
use crate::common::server::{BINARY, Ended, run_binary};
use crate::common::{Proxy, Reply, Upstream, refused, run, run_for};

const LIMIT: Duration = Duration::from_secs(60);

/// Asks the proxy.
fn ask(proxy: &Proxy, args: &[&str]) -> Ended {
    run_binary(proxy.folder(), &[("ARTIFACTAPI_URL", &proxy.base())], args)
}

#[track_caller]
fn ok(ended: Ended) -> Ended {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended
}

#[track_caller]
fn json_of(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// Runs a command on a terminal, with `typed` on it.
fn on_a_terminal(folder: &Path, env: &[(&str, &str)], args: &[&str], typed: &str) -> Output {
    let line: Vec<String> = std::iter::once(BINARY)
        .chain(args.iter().copied())
        .map(|arg| format!("'{arg}'"))
        .collect();
    let mut command = Command::new("/bin/sh");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("TERM", "xterm")
        .envs(env.iter().copied())
        .current_dir(folder)
        .args([
            "-c",
            &format!("printf '{typed}' | script -qec \"{}\" /dev/null", line.join(" ")),
        ]);
    bounded(command, LIMIT)
}

async fn files() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    for name in ["a", "b", "c/d"] {
        up.reply(&format!("/{name}"), Reply::ok(format!("content of {name}")));
    }
    let proxy = Proxy::start(&format!(
        "files:\n  base_url: {base}\nother:\n  base_url: {base}\n  mutable_patterns: ['.']\n",
        base = up.base()
    ))
    .await;
    (up, proxy)
}

#[test]
fn warm_brings_paths_into_the_cache() {
    run(async {
        let (up, proxy) = files().await;
        let list = proxy.folder().join("list.txt");
        std::fs::write(&list, "# a comment\n\nfiles/b\n  other/c/d\n").unwrap();
        let ended = ok(ask(&proxy, &["warm", "files/a", "--list", "list.txt"]));
        for line in [
            "fetched  files/a  12 B",
            "fetched  files/b  12 B",
            "fetched  other/c/d  14 B",
            "3 fetched, 0 cached, 0 failed, 38 B",
        ] {
            assert!(ended.stdout.lines().any(|said| said == line), "{line}: {ended:?}");
        }
        let again = ok(ask(&proxy, &["warm", "--remote", "files", "a", "b"]));
        assert!(again.stdout.contains("0 fetched, 2 cached, 0 failed"), "{again:?}");
        let told = ask(
            &proxy,
            &["warm", "files/a", "files/none", "--output", "json", "--parallel", "2"],
        );
        assert_eq!(told.code, Some(1), "{told:?}");
        let lines: Vec<Value> = told
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[2]["done"], &lines[2]["failed"]), (&json!(true), &json!(1)));
        let failed = ask(&proxy, &["warm", "files/none"]);
        assert!(failed.stdout.contains("failed   files/none  404: "), "{failed:?}");
        assert_eq!(up.count("GET", "/a"), 1);
        // No terminal, no colours.
        assert!(!failed.text().contains('\u{1b}'), "{failed:?}");
    });
}

#[test]
fn warm_takes_what_ecosystems_call_their_artifacts() {
    run(async {
        let up = Upstream::start().await;
        let wheels = [Wheel::new("demo", "1.0", &[], 100), Wheel::new("demo", "2.0", &[], 100)];
        serve_pypi(&up, &up, IndexForm::Both, &wheels);
        let proxy = Proxy::start(&format!("pypi:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        std::fs::write(proxy.folder().join("requirements.txt"), "demo<2\n").unwrap();
        let args = [
            "warm",
            "--remote",
            "pypi",
            "--requirements",
            "requirements.txt",
            "--file",
            "*.whl",
        ];
        let ended = ok(ask(&proxy, &args));
        assert!(
            ended.stdout.contains(&wheels[0].path()) && !ended.stdout.contains(&wheels[1].file),
            "{ended:?}"
        );
        std::fs::write(proxy.folder().join("bad.txt"), "-r other.txt\n").unwrap();
        let refused = ask(&proxy, &["warm", "--remote", "pypi", "--requirements", "bad.txt"]);
        assert_eq!(refused.code, Some(1));
        assert!(
            refused.stderr.contains("400: ") && refused.stderr.contains("line 1"),
            "{refused:?}"
        );
        for (args, says) in [
            (&["warm"][..], "nothing to be cached"),
            (&["warm", "alone"], "no REMOTE/PATH"),
            (&["warm", "--requirements", "requirements.txt"], "needs --remote"),
            (
                &["warm", "--remote", "pypi", "--platform", "linux/amd64"],
                "--platform goes with --image",
            ),
            (
                &["warm", "--remote", "pypi", "--file", "*"],
                "--file goes with --requirements or --lock",
            ),
            (&["warm", "--unknown"], "--unknown"),
        ] {
            let ended = ask(&proxy, args);
            assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
            assert!(ended.stderr.contains(says), "{args:?}: {ended:?}");
        }
        let missing = ask(&proxy, &["warm", "--list", "no-such-file"]);
        assert_eq!(missing.code, Some(1));
        assert!(missing.stderr.contains("no-such-file cannot be read"), "{missing:?}");
    });
}

#[test]
fn artifacts_lists_all_pages() {
    run_for(Duration::from_secs(120), async {
        let up = Upstream::start().await;
        up.under("/", |seen| Reply::ok(seen.path.clone()));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let paths: Vec<String> = (0..1100).map(|number| format!("files/many/{number:04}")).collect();
        std::fs::write(proxy.folder().join("list"), paths.join("\n")).unwrap();
        ok(ask(&proxy, &["warm", "--list", "list", "--parallel", "32"]));
        let all = ok(ask(&proxy, &["artifacts", "--limit", "0", "--output", "json"]));
        let all = json_of(&all);
        let listed: std::collections::BTreeSet<&str> = all["artifacts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|artifact| artifact["path"].as_str().unwrap())
            .collect();
        assert_eq!((listed.len(), &all["total"]), (1100, &json!(1100)));
        let some = ok(ask(
            &proxy,
            &["artifacts", "--prefix", "many/10", "--sort", "-path", "--limit", "2"],
        ));
        let lines: Vec<&str> = some.stdout.lines().collect();
        assert_eq!(lines.len(), 3, "{some:?}");
        assert!(
            lines[0].starts_with("REMOTE  PATH") && lines[1].contains("many/1099"),
            "{some:?}"
        );
        assert!(some.stderr.contains("2 of 100 artifacts"), "{some:?}");
        let few = ok(ask(
            &proxy,
            &[
                "artifacts",
                "--glob",
                "110?",
                "--class",
                "immutable",
                "--remote",
                "files",
            ],
        ));
        assert_eq!(few.stdout, "", "{few:?}");
        let bad = ask(&proxy, &["artifacts", "--pattern", "("]);
        assert_eq!(bad.code, Some(1));
        assert!(bad.stderr.contains("400: `pattern`"), "{bad:?}");
        let bad = ask(&proxy, &["artifacts", "--class", "other"]);
        assert_eq!(bad.code, Some(2));
    });
}

#[test]
fn flush_forgets_what_it_is_asked_to() {
    run(async {
        let (up, proxy) = files().await;
        ok(ask(&proxy, &["warm", "files/a", "files/b", "files/c/d", "other/a"]));
        let dry = ok(ask(
            &proxy,
            &["flush", "--remote", "files", "--dry-run", "--output", "json"],
        ));
        assert_eq!(json_of(&dry)["matched"], 3);
        let part = ok(ask(&proxy, &["flush", "--remote", "files", "--prefix", "c/"]));
        assert!(part.stdout.starts_with("1 matched: 1 deleted, 0 expired"), "{part:?}");
        let part = ok(ask(&proxy, &["flush", "--class", "mutable", "--mode", "expire"]));
        assert!(part.stdout.starts_with("1 matched: 0 deleted, 1 expired"), "{part:?}");
        let part = ok(ask(&proxy, &["flush", "--pattern", "^b$"]));
        assert!(part.stdout.starts_with("1 matched: 1 deleted"), "{part:?}");
        // All of it is not flushed by mistake.
        let refused = ask(&proxy, &["flush"]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("--yes"), "{refused:?}");
        let dry = ok(ask(&proxy, &["flush", "--dry-run"]));
        assert!(dry.stdout.starts_with("2 would be flushed"), "{dry:?}");
        let env = [("ARTIFACTAPI_URL", &*proxy.base())];
        let no = on_a_terminal(proxy.folder(), &env, &["flush"], "n\\n");
        assert_eq!(no.code, Some(1), "{no:?}");
        assert!(no.text().contains("nothing was flushed"), "{no:?}");
        assert_eq!(up.count("GET", "/a"), 2);
        proxy.fetch("files", "a").await.is("cache", "content of a");
        let all = ok(ask(&proxy, &["flush", "--yes"]));
        assert!(all.stdout.starts_with("2 matched: 2 deleted"), "{all:?}");
        let unknown = ask(&proxy, &["flush", "--remote", "none"]);
        assert_eq!(unknown.code, Some(1));
        assert!(unknown.stderr.contains("404: there is no remote"), "{unknown:?}");
    });
}

#[test]
fn tokens_and_the_instance_come_from_the_environment_too() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a", Reply::ok("a"));
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .env("ARTIFACTAPI_ADMIN_TOKEN", "secret")
            .start()
            .await;
        let base = proxy.base();
        let run = |env: &[(&str, &str)], more: &[&str]| {
            let args: Vec<&str> = ["warm", "files/a", "--url", &base]
                .into_iter()
                .chain(more.iter().copied())
                .collect();
            run_binary(proxy.folder(), env, &args)
        };
        let none = run(&[], &[]);
        assert_eq!(none.code, Some(1));
        assert!(
            none.stderr.contains("401: ") && !none.text().contains("secret"),
            "{none:?}"
        );
        ok(run(&[("ARTIFACTAPI_TOKEN", "secret")], &[]));
        ok(run(
            &[("ARTIFACTAPI_TOKEN", ""), ("ARTIFACTAPI_ADMIN_TOKEN", "secret")],
            &[],
        ));
        ok(run(
            &[("ARTIFACTAPI_ADMIN_TOKEN", "wrong"), ("ARTIFACTAPI_TOKEN", "secret")],
            &[],
        ));
        ok(run(&[("ARTIFACTAPI_TOKEN", "wrong")], &["--token", "secret"]));
        let away = format!("http://{}", refused());
        let nobody = run_binary(proxy.folder(), &[("ARTIFACTAPI_URL", &away)], &["artifacts"]);
        assert_eq!(nobody.code, Some(1));
        assert!(
            nobody.stderr.contains("is not reached") && nobody.stderr.contains("--url"),
            "{nobody:?}"
        );
        let stranger = run_binary(proxy.folder(), &[("ARTIFACTAPI_URL", &up.base())], &["artifacts"]);
        assert_eq!(stranger.code, Some(1));
        assert!(
            stranger.stderr.contains("no artifactapi that knows this"),
            "{stranger:?}"
        );
        let help = run_binary(proxy.folder(), &[("ARTIFACTAPI_TOKEN", "secret")], &["warm", "--help"]);
        assert!(
            help.stdout.contains("--image <REF>") && !help.stdout.contains("secret"),
            "{help:?}"
        );
        let help = run_binary(proxy.folder(), &[], &["--help"]);
        assert!(help.stdout.contains("Exit codes"), "{help:?}");
    });
}

#[test]
fn colours_and_bars_are_for_terminals() {
    run(async {
        let (_up, proxy) = files().await;
        let base = proxy.base();
        let env = [("ARTIFACTAPI_URL", &*base)];
        let warm = on_a_terminal(proxy.folder(), &env, &["warm", "files/a", "files/none"], "");
        assert_eq!(warm.code, Some(1), "{warm:?}");
        let shown = warm.text();
        assert!(
            shown.contains("/2 ") && shown.contains("\u{1b}[") && shown.contains("404: "),
            "{shown:?}"
        );
        assert!(shown.contains("1 fetched, 0 cached, "), "{shown:?}");
        let list = on_a_terminal(proxy.folder(), &env, &["artifacts"], "");
        assert!(list.text().contains("\u{1b}[1mREMOTE"), "{list:?}");
        let plain = [("ARTIFACTAPI_URL", &*base), ("NO_COLOR", "1")];
        let list = on_a_terminal(proxy.folder(), &plain, &["artifacts"], "");
        assert!(
            list.text().contains("REMOTE") && !list.text().contains('\u{1b}'),
            "{list:?}"
        );
    });
}

#[test]
fn versions_and_completions_need_no_instance() {
    let folder = tempfile::tempdir().unwrap();
    let ended = |args: &[&str]| ok(run_binary(folder.path(), &[], args));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(ended(&["version"]).stdout, format!("artifactapi {version}\n"));
    assert_eq!(json_of(&ended(&["version", "--output", "json"]))["version"], version);
    for shell in ["bash", "zsh", "fish"] {
        let script = ended(&["completions", shell]).stdout;
        for word in ["warm", "artifacts", "flush", "quarantine", "package-lock"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let script = folder.path().join("completion.bash");
    std::fs::write(&script, ended(&["completions", "bash"]).stdout).unwrap();
    let mut bash = Command::new("bash");
    let completes = format!(
        ". {} && COMP_WORDS=(artifactapi war) COMP_CWORD=1 && _artifactapi artifactapi war artifactapi && echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    bash.args(["--norc", "-c", &completes]);
    let said = bounded(bash, LIMIT);
    assert_eq!(said.stdout.trim(), "warm", "{said:?}");
    assert_eq!(run_binary(folder.path(), &[], &["completions", "other"]).code, Some(2));
}

#[test]
fn check_reports_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    let check = |remotes: &str| {
        std::fs::write(folder.path().join("remotes.yaml"), remotes).unwrap();
        run_binary(folder.path(), &[], &["check", "--output", "json"])
    };
    let good = ok(check("remotes:\n  files:\n    base_url: http://127.0.0.1:1\n"));
    let report = json_of(&good);
    assert_eq!(
        (&report["ok"], &report["remotes"], &report["errors"]),
        (&json!(true), &json!(1), &json!(0))
    );
    let bad = check("remotes:\n  files:\n    base_ulr: http://127.0.0.1:1\n");
    assert_eq!(bad.code, Some(1));
    let report = json_of(&bad);
    assert_eq!(report["ok"], false);
    assert!(report["errors"].as_u64().unwrap() >= 1, "{report}");
    let problems = report["problems"].as_array().unwrap();
    let names_it = |problem: &&Value| problem["message"].as_str().unwrap().contains("base_ulr");
    let problem = problems.iter().find(names_it).unwrap_or_else(|| panic!("{report}"));
    assert_eq!(
        (&problem["severity"], &problem["remote"], &problem["line"]),
        (&json!("error"), &json!("files"), &json!(3))
    );
}
