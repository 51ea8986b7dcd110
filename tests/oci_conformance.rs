//! The conformance suite of the OCI distribution-spec, its read-only half, against a proxied repository.
//!
//! Its exit code is of no use: without pushes it stops with a panic after it has printed its table. So the table is
//! read, and compared with the one in `docs/oci-conformance.md`.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::clients::{Home, tool};
use common::image::*;
use common::oci::RealRegistry;
use common::registry::{Registry, Tokens};
use common::{Proxy, run_for};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/oci-conformance.md");
const LIMIT: Duration = Duration::from_secs(120);

/// What the suite is told to look for.
struct Data<'a> {
    tags: &'a [&'a str],
    image: &'a Manifest,
    referrers: bool,
}

/// Runs the suite on `/v2/hub/team/app` of the proxy; gives the results by name, in the order of its table.
async fn results(proxy: &Proxy, data: &Data<'_>) -> Vec<(String, String)> {
    let parts = data.image.all();
    let manifests = parts.iter().map(|part| part.digest.clone()).collect::<Vec<_>>();
    let blobs = parts
        .iter()
        .flat_map(|part| &part.blobs)
        .map(|blob| blob.digest.clone());
    let home = Home::new();
    let mut command = home.command(tool("go/bin/conformance"));
    for (name, value) in [
        ("REGISTRY", proxy.address().to_string()),
        ("TLS", "disabled".to_owned()),
        ("REPO1", "hub/team/app".to_owned()),
        ("REPO2", "hub/team/other".to_owned()),
        ("API_PUSH", "false".to_owned()),
        ("API_BLOBS_DELETE", "false".to_owned()),
        ("API_MANIFESTS_DELETE", "false".to_owned()),
        ("API_TAGS_DELETE", "false".to_owned()),
        // Said in the answers of this program, so they may be checked.
        ("API_BLOBS_DIGEST_HEADER", "true".to_owned()),
        ("API_MANIFESTS_DIGEST_HEADER", "true".to_owned()),
        ("API_REFERRER", data.referrers.to_string()),
        ("RO_DATA_TAGS", data.tags.join(" ")),
        ("RO_DATA_MANIFESTS", manifests.join(" ")),
        ("RO_DATA_BLOBS", blobs.collect::<Vec<_>>().join(" ")),
        ("RO_DATA_REFERRERS", data.image.digest.clone()),
        ("RESULTS_DIR", home.work().join("results").display().to_string()),
    ] {
        command.env(format!("OCI_{name}"), value);
    }
    let output = home.run(command).await;
    let text = output.text();
    let table = text.split("\nAPI conformance:\n").nth(1);
    let table = table.unwrap_or_else(|| panic!("no table:\n{text}"));
    let rows = table
        .lines()
        .take_while(|line| !line.starts_with("panic"))
        .filter_map(|line| {
            let (name, status) = line.trim().split_once(':')?;
            (!status.is_empty()).then(|| (name.trim_end_matches('.').to_owned(), status.trim().to_owned()))
        });
    let rows = rows.collect::<Vec<_>>();
    let failed = rows.iter().any(|(_, status)| status == "FAIL" || status == "Error");
    assert!(!failed, "{text}");
    rows
}

/// The rows that say something: what was switched off or needs a push is left out.
fn table(columns: &[(&str, Vec<(String, String)>)]) -> String {
    let mut lines = vec![
        format!(
            "| check | {} |",
            columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" | ")
        ),
        format!("| --- |{}", " --- |".repeat(columns.len())),
    ];
    let by_name = columns
        .iter()
        .map(|(_, rows)| rows.iter().cloned().collect::<BTreeMap<_, _>>())
        .collect::<Vec<_>>();
    for (name, _) in &columns[0].1 {
        let cells = by_name.iter().map(|rows| rows.get(name).map_or("", String::as_str));
        let cells = cells.collect::<Vec<_>>();
        if cells
            .iter()
            .any(|cell| !matches!(*cell, "Disabled" | "Skip" | "Unknown" | ""))
        {
            lines.push(format!("| {name} | {} |", cells.join(" | ")));
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_pull_side_conforms_as_the_page_says() {
    run_for(LIMIT, async {
        let image = Manifest::two_platforms("app");
        let real = RealRegistry::with("team/app", "v1", &image).await;
        real.push("team/app", "v2", image.of("amd64")).await;

        let tokens = Tokens::start().await;
        let scripted = Registry::start().await.guarded(&tokens).redirecting().await;
        scripted
            .push("team/app", "v1", &image)
            .push("team/app", "v2", image.of("amd64"));
        let sbom = Manifest::artifact("application/vnd.test.sbom", "all that is in it", Some(&image));
        scripted.store("team/app", &sbom);

        let mut columns = Vec::new();
        for (name, base, referrers) in [
            ("docker-registry 2.8", real.base(), false),
            ("scripted, with referrers", scripted.up.base(), true),
        ] {
            let proxy = Proxy::start(&format!("hub:\n  base_url: {base}\n  package: docker\n")).await;
            let data = Data {
                tags: &["v1", "v2"],
                image: &image,
                referrers,
            };
            let cold = results(&proxy, &data).await;
            // Once more from what is stored now.
            assert_eq!(results(&proxy, &data).await, cold, "{name}");
            columns.push((name, cold));
        }
        let table = table(&columns);
        let passed = table.matches("| Pass").count();
        assert!(passed >= 10, "hardly anything was checked:\n{table}");
        let page = std::fs::read_to_string(PAGE).unwrap_or_default();
        assert!(
            page.contains(&table),
            "docs/oci-conformance.md has another table than this:\n\n{table}"
        );
    });
}
