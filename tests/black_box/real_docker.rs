//! skopeo, podman, crane, oras and helm through the proxy, from a real registry.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::clients::{Home, Output, program, readme_block, tool};
use crate::common::image::*;
use crate::common::oci::RealRegistry;
use crate::common::packages::Chart;
use crate::common::registry::blob_at;
use crate::common::{Proxy, client, run_for};

const LIMIT: Duration = Duration::from_secs(180);

async fn pair(image: &Manifest) -> (RealRegistry, Proxy) {
    let registry = RealRegistry::with("team/app", "v1", image).await;
    let proxy = proxy_of(&registry).await;
    (registry, proxy)
}

async fn proxy_of(registry: &RealRegistry) -> Proxy {
    Proxy::start(&format!("hub:\n  base_url: {}\n  package: docker\n", registry.base())).await
}

/// Waits until all that a client pulled is stored.
async fn settled(proxy: &Proxy, image: &Manifest) {
    for blob in &image.blobs {
        crate::common::pull::until_cached(proxy, &blob_at("hub/team/app", &blob.digest)).await;
    }
}

async fn run(home: &Home, mut command: Command, args: &[&str]) -> Output {
    command.args(args);
    home.run(command).await
}

async fn skopeo(home: &Home, args: &[&str]) -> Output {
    let mut command = home.command(program("skopeo"));
    command
        .arg("--insecure-policy")
        .arg("--registries-conf")
        .arg(home.work().join("registries.conf"));
    if !home.work().join("registries.conf").exists() {
        home.write("registries.conf", "unqualified-search-registries = []\n");
    }
    run(home, command, args).await
}

/// Whether a folder in the OCI layout holds a blob with these bytes.
#[track_caller]
fn layout_holds(folder: &Path, blob: &Blob) {
    let file = folder.join("blobs").join(blob.digest.replace(':', "/"));
    let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(bytes == blob.bytes(), "other bytes in {}", file.display());
}

#[test]
fn skopeo_inspects_and_copies_one_platform_and_all_and_again_without_upstream() {
    run_for(LIMIT, async {
        let image = Manifest::two_platforms("app");
        let (mut registry, proxy) = pair(&image).await;
        let from = format!("docker://{}/hub/team/app:v1", proxy.address());
        for round in ["first", "second"] {
            let home = Home::new();
            let raw = skopeo(&home, &["inspect", "--raw", "--tls-verify=false", &from])
                .await
                .ok();
            assert_eq!(raw.stdout.as_bytes(), image.bytes, "{round}");
            let arm = [
                "--override-arch",
                "arm64",
                "inspect",
                "--tls-verify=false",
                "--no-tags",
                &from,
            ];
            let shown = skopeo(&home, &arm).await.ok();
            let shown = serde_json::from_str::<serde_json::Value>(&shown.stdout).expect("JSON");
            assert_eq!(shown["Architecture"], "arm64");
            assert_eq!(shown["Layers"].as_array().unwrap().len(), 2);
            for (all, name, parts) in [(false, "one", vec![image.of("amd64")]), (true, "all", image.all())] {
                let to = home.work().join(name);
                let to_text = format!("oci:{}:v1", to.display());
                let mut args = vec!["copy", "--src-tls-verify=false"];
                args.extend(all.then_some("--all"));
                args.extend([from.as_str(), &to_text]);
                skopeo(&home, &args).await.ok();
                for part in parts {
                    layout_holds(
                        &to,
                        &Blob {
                            digest: part.digest.clone(),
                            body: part.bytes.clone().into(),
                        },
                    );
                    part.blobs.iter().for_each(|blob| layout_holds(&to, blob));
                }
            }
            for part in image.all() {
                settled(&proxy, part).await;
            }
            if round == "first" {
                for blob in image.all().iter().flat_map(|part| &part.blobs) {
                    assert_eq!(registry.count(&format!("GET /v2/team/app/blobs/{}", blob.digest)), 1);
                }
                registry.switch_off().await;
            }
        }
    });
}

#[test]
fn skopeo_lists_tags_and_pulls_by_digest() {
    run_for(LIMIT, async {
        let image = Manifest::docker_image("app", "amd64");
        let (registry, proxy) = pair(&image).await;
        registry.push("team/app", "v2", &image).await;
        let home = Home::new();
        let name = format!("docker://{}/hub/team/app", proxy.address());
        let listed = skopeo(&home, &["list-tags", "--tls-verify=false", &name]).await.ok();
        let listed = serde_json::from_str::<serde_json::Value>(&listed.stdout).expect("JSON");
        assert_eq!(listed["Tags"], serde_json::json!(["v1", "v2"]));
        let to = format!("dir:{}", home.work().join("d").display());
        let from = format!("{name}@{}", image.digest);
        skopeo(&home, &["copy", "--src-tls-verify=false", &from, &to])
            .await
            .ok();
        assert_eq!(home.read("d/manifest.json").as_bytes(), image.bytes);
    });
}

/// The entry that README shows, for a registry of this name.
fn registries_conf(home: &Home, proxy: &Proxy, name: &str) -> std::path::PathBuf {
    let text = readme_block("[[registry]]", proxy.address(), ("dockerhub", "hub"));
    let own = text.lines().find_map(|line| line.strip_prefix("prefix = "));
    let text = text.replace(own.expect("a prefix"), &format!("\"{name}\""));
    home.write("registries.conf", &text)
}

#[test]
fn skopeo_and_podman_go_by_a_location_that_has_no_way_around() {
    run_for(LIMIT, async {
        let image = Manifest::image("app", "amd64", 2);
        let (registry, proxy) = pair(&image).await;
        let home = Home::new();
        registries_conf(&home, &proxy, "registry.test");
        let to = format!("oci:{}:v1", home.work().join("copy").display());
        skopeo(&home, &["copy", "docker://registry.test/team/app:v1", &to])
            .await
            .ok();
        podman(&home, &["pull", "registry.test/team/app:v1"]).await.ok();
        // What the proxy refuses is not had elsewhere: there is no second location.
        let refused = skopeo(&home, &["inspect", "--raw", "docker://registry.test/team/none:v1"])
            .await
            .fails();
        assert!(!refused.stderr.contains("no such host"), "{}", refused.stderr);
        drop(registry);
    });
}

async fn podman(home: &Home, args: &[&str]) -> Output {
    let mut command = home.command(program("podman"));
    let (root, state) = (home.path("home/s"), home.path("home/r"));
    command.arg("--root").arg(root).arg("--runroot").arg(state);
    command.args(["--storage-driver", "vfs", "--log-level", "error"]);
    command.env("XDG_RUNTIME_DIR", home.path("tmp"));
    let conf = home.work().join("registries.conf");
    if conf.exists() {
        command.env("CONTAINERS_REGISTRIES_CONF", conf);
    }
    run(home, command, args).await
}

#[test]
fn podman_pulls_and_pulls_again_without_upstream() {
    run_for(LIMIT, async {
        let image = Manifest::two_platforms("app");
        let (mut registry, proxy) = pair(&image).await;
        let name = format!("{}/hub/team/app", proxy.address());
        for _ in 0..2 {
            let home = Home::new();
            let tagged = format!("{name}:v1");
            podman(&home, &["pull", "--tls-verify=false", &tagged]).await.ok();
            let digest = podman(&home, &["image", "inspect", "--format", "{{.Digest}}", &tagged])
                .await
                .ok();
            let known = [image.digest.as_str(), &image.of("amd64").digest];
            assert!(known.contains(&digest.stdout.trim()), "{}", digest.stdout);
            let layers = podman(
                &home,
                &["image", "inspect", "--format", "{{len .RootFS.Layers}}", &tagged],
            )
            .await
            .ok();
            assert_eq!(layers.stdout.trim(), "3");
            let by_digest = format!("{name}@{}", image.of("arm64").digest);
            podman(&home, &["pull", "--tls-verify=false", "--arch", "arm64", &by_digest])
                .await
                .ok();
            for part in image.all() {
                settled(&proxy, part).await;
            }
            registry.switch_off().await;
        }
    });
}

async fn crane(home: &Home, args: &[&str]) -> Output {
    run(home, home.command(tool("go/bin/crane")), args).await
}

#[test]
fn crane_pulls_exports_and_compares() {
    run_for(LIMIT, async {
        let image = Manifest::two_platforms("app");
        let (mut registry, proxy) = pair(&image).await;
        let name = format!("{}/hub/team/app", proxy.address());
        let tagged = format!("{name}:v1");
        for _ in 0..2 {
            let home = Home::new();
            assert_eq!(
                crane(&home, &["digest", &tagged]).await.ok().stdout.trim(),
                image.digest
            );
            let arm = crane(&home, &["digest", "--platform", "linux/arm64", &tagged])
                .await
                .ok();
            assert_eq!(arm.stdout.trim(), image.of("arm64").digest);
            assert_eq!(
                crane(&home, &["manifest", &tagged]).await.ok().stdout.as_bytes(),
                image.bytes
            );
            crane(&home, &["pull", "--format", "oci", &tagged, "layout"]).await.ok();
            for blob in image.all().iter().flat_map(|part| &part.blobs) {
                layout_holds(&home.work().join("layout"), blob);
            }
            // Every layer is fetched and its digest computed.
            crane(
                &home,
                &["validate", "--remote", &format!("{name}@{}", image.of("amd64").digest)],
            )
            .await
            .ok();
            let blob = &image.of("amd64").blobs[0];
            let config = crane(&home, &["blob", &format!("{name}@{}", blob.digest)]).await.ok();
            assert_eq!(config.stdout.as_bytes(), blob.bytes());
            assert_eq!(crane(&home, &["ls", &name]).await.ok().stdout.trim(), "v1");
            for part in image.all() {
                settled(&proxy, part).await;
            }
            registry.switch_off().await;
        }
        // A push says why it cannot be.
        let home = Home::new();
        let pushed = crane(&home, &["tag", &tagged, "v2"]).await.fails();
        assert!(pushed.text().contains("UNSUPPORTED"), "{}", pushed.text());
    });
}

#[test]
fn crane_prints_why_a_policy_refuses() {
    run_for(LIMIT, async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = RealRegistry::with("team/app", "v1", &image).await;
        let proxy = Proxy::start(&format!(
            "hub:\n  base_url: {}\n  package: docker\n  immutable_patterns: ['^allowed/']\n",
            registry.base()
        ))
        .await;
        let home = Home::new();
        let name = format!("{}/hub/team/app@{}", proxy.address(), image.digest);
        let refused = crane(&home, &["manifest", &name]).await.fails();
        assert!(
            refused.text().contains("DENIED") && refused.text().contains("immutable_patterns"),
            "{}",
            refused.text()
        );
    });
}

async fn helm(home: &Home, args: &[&str]) -> Output {
    run(home, home.command(tool("go/bin/helm")), args).await
}

#[test]
fn helm_pulls_a_chart_that_helm_pushed_and_again_without_upstream() {
    run_for(LIMIT, async {
        let mut registry = RealRegistry::start().await;
        let chart = Chart::new("web", "1.2.3");
        let home = Home::new();
        std::fs::write(home.work().join(chart.file()), &chart.bytes).unwrap();
        let to = format!("oci://{}/charts", registry.address());
        helm(&home, &["push", "--plain-http", &chart.file(), &to]).await.ok();
        let proxy = proxy_of(&registry).await;
        let from = format!("oci://{}/hub/charts/web", proxy.address());
        for _ in 0..2 {
            let home = Home::new();
            helm(&home, &["pull", "--plain-http", &from, "--version", "1.2.3"])
                .await
                .ok();
            assert_eq!(std::fs::read(home.work().join(chart.file())).unwrap(), chart.bytes);
            // The newest one, which needs the list of tags.
            let shown = helm(&home, &["show", "chart", "--plain-http", &from]).await.ok();
            assert!(shown.stdout.contains("version: 1.2.3"), "{}", shown.stdout);
            let layer = format!("sha256:{}", crate::common::sha256(&chart.bytes));
            crate::common::pull::until_cached(&proxy, &blob_at("hub/charts/web", &layer)).await;
            registry.switch_off().await;
        }
    });
}

async fn oras(home: &Home, args: &[&str]) -> Output {
    run(home, home.command(tool("go/bin/oras")), args).await
}

#[test]
fn oras_pulls_artifacts_and_finds_what_refers_to_an_image() {
    run_for(LIMIT, async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = RealRegistry::with("team/app", "v1", &image).await;
        let home = Home::new();
        home.write("notes.txt", "what is in it\n");
        home.write("sbom.json", "{}\n");
        let direct = format!("{}/team/app", registry.address());
        let push = ["push", "--plain-http", "--artifact-type", "application/vnd.test.notes"];
        oras(&home, &[&push[..], &[&format!("{direct}:notes"), "notes.txt"]].concat())
            .await
            .ok();
        // This registry has no referrers: oras writes the fallback tag.
        let attach = ["attach", "--plain-http", "--artifact-type", "application/vnd.test.sbom"];
        oras(&home, &[&attach[..], &[&format!("{direct}:v1"), "sbom.json"]].concat())
            .await
            .ok();
        // As cosign names its signatures.
        let signature = format!("{}.sig", image.digest.replace(':', "-"));
        let sign = [
            "push",
            "--plain-http",
            "--artifact-type",
            "application/vnd.dev.cosign.simplesigning.v1+json",
        ];
        oras(
            &home,
            &[&sign[..], &[&format!("{direct}:{signature}"), "sbom.json"]].concat(),
        )
        .await
        .ok();

        let proxy = proxy_of(&registry).await;
        let name = format!("{}/hub/team/app", proxy.address());
        let home = Home::new();
        for (tag, file) in [("notes", "notes.txt"), (&signature, "sbom.json")] {
            oras(&home, &["pull", "--plain-http", &format!("{name}:{tag}")])
                .await
                .ok();
            assert!(home.work().join(file).exists(), "{file}");
        }
        assert_eq!(home.read("notes.txt"), "what is in it\n");
        let found = oras(
            &home,
            &["discover", "--plain-http", "--format", "json", &format!("{name}:v1")],
        )
        .await
        .ok();
        assert!(found.stdout.contains("application/vnd.test.sbom"), "{}", found.text());
        let answer = client::get(proxy.address(), &format!("/v2/hub/team/app/referrers/{}", image.digest))
            .await
            .ok();
        assert_eq!(answer.json()["manifests"].as_array().unwrap().len(), 1);
    });
}
