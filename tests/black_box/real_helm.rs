//! helm through the proxy: repo add, update, pull; and the index that it reads.

use std::time::{Duration, SystemTime};

use crate::common::client::Headers;
use crate::common::clients::{Home, Output, tool};
use crate::common::packages::{Chart, helm_index, rfc3339};
use crate::common::{File, Proxy, Reply, Upstream, run, run_for};

async fn helm(home: &Home, args: &[&str]) -> Output {
    let mut command = home.command(tool("go/bin/helm"));
    command.args(args);
    home.run(command).await
}

#[test]
fn charts_are_found_and_pulled_and_pulled_again_without_upstream() {
    run_for(Duration::from_secs(180), async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        let charts = [
            Chart::new("absolute", "1.2.3"),
            Chart::new("relative", "0.1.0"),
            Chart::new("elsewhere", "2.0.0"),
        ];
        up.file(
            &format!("/charts/{}", charts[0].file()),
            File::new(charts[0].bytes.clone()),
        );
        up.file(
            &format!("/charts/sub/{}", charts[1].file()),
            File::new(charts[1].bytes.clone()),
        );
        other.file(&format!("/dl/{}", charts[2].file()), File::new(charts[2].bytes.clone()));
        let index = helm_index(&[
            charts[0].entry(&[
                &up.url(&format!("/charts/{}", charts[0].file())),
                "https://second.invalid/x.tgz",
            ]),
            charts[1].entry(&[&format!("sub/{}", charts[1].file())]),
            charts[2].entry(&[&other.url(&format!("/dl/{}", charts[2].file()))]),
        ]);
        up.file(
            "/charts/index.yaml",
            File::new(index).etag("\"i\"").content_type("text/yaml"),
        );
        let proxy = Proxy::start(&format!(
            "charts:\n  base_url: {}/charts\n  package: helm\n  check_mutable_updates: true\n  \
             immutable_patterns: ['\\.tgz$']\n",
            up.base()
        ))
        .await;
        let url = format!("{}/api/v1/remote/charts", proxy.base());
        for round in ["first", "second"] {
            let home = Home::new();
            helm(&home, &["repo", "add", "test", &url]).await.ok();
            helm(&home, &["repo", "update"]).await.ok();
            for chart in &charts {
                let name = format!("test/{}", chart.name);
                helm(&home, &["pull", &name, "--version", &chart.version]).await.ok();
                assert_eq!(
                    std::fs::read(home.work().join(chart.file())).unwrap(),
                    chart.bytes,
                    "{round}"
                );
            }
            up.switch_off().await;
            other.switch_off().await;
        }
    });
}

#[test]
fn what_is_held_is_not_chosen_and_says_why_where_it_is_pinned() {
    run_for(Duration::from_secs(120), async {
        let up = Upstream::start().await;
        let (old, new) = (Chart::new("demo", "1.0.0"), Chart::new("demo", "2.0.0"));
        let yesterday = rfc3339(SystemTime::now() - Duration::from_secs(24 * 3600));
        let created = |entry: String| entry.replace("2024-01-02T03:04:05.678901234Z", &yesterday);
        let entry = old.entry(&[&old.file()]);
        let (_, versions) = entry.split_once('\n').unwrap();
        let index = helm_index(&[created(new.entry(&[&new.file()])), versions.to_owned()]);
        up.file("/charts/index.yaml", File::new(index).content_type("text/yaml"));
        for chart in [&old, &new] {
            up.file(&format!("/charts/{}", chart.file()), File::new(chart.bytes.clone()));
        }
        let proxy = Proxy::start(&format!(
            "charts:\n  base_url: {}/charts\n  package: helm\n  quarantine_new: true\n  quarantine_days: 3\n",
            up.base()
        ))
        .await;
        let url = format!("{}/api/v1/remote/charts", proxy.base());
        let home = Home::new();
        helm(&home, &["repo", "add", "test", &url]).await.ok();
        helm(&home, &["pull", "test/demo"]).await.ok();
        assert_eq!(std::fs::read(home.work().join(old.file())).unwrap(), old.bytes);
        helm(&home, &["pull", "test/demo", "--version", "2.0.0"]).await.fails();
        let said = helm(&home, &["pull", &format!("{url}/{}", new.file())])
            .await
            .fails()
            .text();
        assert!(said.contains("404"), "{said}");
        let answer = proxy.fetch("charts", &new.file()).await;
        assert!(answer.text().contains("held back until"), "{}", answer.text());
    });
}

#[test]
fn a_chart_that_is_not_what_its_index_says_is_not_pulled() {
    run_for(Duration::from_secs(120), async {
        let (chart, other) = (Chart::new("demo", "1.0.0"), Chart::new("demo", "1.0.1"));
        for verify in ["enforce", "warn", "off"] {
            let up = Upstream::start().await;
            let index = helm_index(&[chart.entry(&[&chart.file()])]);
            up.file("/charts/index.yaml", File::new(index).content_type("text/yaml"));
            let at = format!("/charts/{}", chart.file());
            up.file(&at, File::new(other.bytes.clone()));
            let proxy = Proxy::start(&format!(
                "charts:\n  base_url: {}/charts\n  package: helm\n  verify: {verify}\n",
                up.base()
            ))
            .await;
            let url = format!("{}/api/v1/remote/charts", proxy.base());
            let home = Home::new();
            helm(&home, &["repo", "add", "test", &url]).await.ok();
            let pulled = home.work().join(chart.file());
            let output = helm(&home, &["pull", "test/demo"]).await;
            if verify != "enforce" {
                // helm itself compares nothing: who only warns has it.
                output.ok();
                assert_eq!(std::fs::read(&pulled).unwrap(), other.bytes, "{verify}");
                continue;
            }
            output.fails();
            assert!(!pulled.exists());
            up.file(&at, File::new(chart.bytes.clone()));
            helm(&home, &["pull", "test/demo"]).await.ok();
            assert_eq!(std::fs::read(&pulled).unwrap(), chart.bytes);
            proxy
                .until_cached("charts", &chart.file())
                .await
                .is("cache", &chart.bytes);
        }
    });
}

#[test]
fn the_index_names_only_this_remote_and_keeps_everything_else() {
    run(async {
        let up = Upstream::start().await;
        let chart = Chart::new("app", "1.0.0");
        let entry = chart.entry(&[
            &up.url("/charts/app-1.0.0.tgz"),
            "https://elsewhere.invalid/dl/app-1.0.0.tgz",
        ]);
        let oci = Chart::new("in-a-registry", "1.0.0").entry(&["oci://registry.invalid/charts/x:1.0.0"]);
        up.file(
            "/charts/index.yaml",
            File::new(helm_index(&[entry, oci]))
                .etag("\"i\"")
                .content_type("text/yaml"),
        );
        let proxy = Proxy::start(&format!("charts:\n  base_url: {}/charts\n  package: helm\n", up.base())).await;
        proxy.fetch("charts", "index.yaml").await.ok();
        let answer = proxy.until_cached("charts", "index.yaml").await.ok();
        let text = answer.text();
        assert!(!text.contains(&up.authority()), "{text}");
        assert!(!text.contains("https://elsewhere.invalid"), "{text}");
        assert!(text.contains("oci://registry.invalid/charts/x:1.0.0"), "{text}");
        for kept in [
            "digest: ",
            &crate::common::sha256(&chart.bytes),
            "x-unknown",
            "2024-01-02T03:04:05.678901234Z",
        ] {
            assert!(text.contains(kept), "{kept} is lost:\n{text}");
        }
        // The view has a validator of its own.
        assert_ne!(answer.header("etag"), Some("\"i\""));
        proxy
            .fetch_with("charts", "index.yaml", &[("If-None-Match", answer.must("etag"))])
            .await
            .expect(304);
    });
}

#[test]
fn a_chart_on_a_host_that_no_index_names_is_refused() {
    run(async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        other.reply("/secret.tgz", Reply::ok("secret"));
        up.file("/index.yaml", File::new(helm_index(&[])));
        let proxy = Proxy::start(&format!("charts:\n  base_url: {}\n  package: helm\n", up.base())).await;
        let path = format!("-/host/{}/secret.tgz", other.authority());
        let refused = proxy.fetch("charts", &path).await.expect(403);
        assert!(
            refused.json()["detail"].as_str().unwrap().contains("file_hosts"),
            "{}",
            refused.text()
        );
        assert_eq!(other.total(), 0);
    });
}
