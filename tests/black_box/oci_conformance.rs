//! The conformance suite of the OCI distribution-spec, its read-only half, against a proxied repository.
//!
//! Its exit code is of no use: without pushes it stops with a panic after it has printed its table. So the table is
//! read, and compared with the one in `docs/oci-conformance.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::common::clients::{Home, tool};
use crate::common::image::*;
use crate::common::oci::RealRegistry;
use crate::common::registry::{Registry, Tokens};
use crate::common::{Proxy, run_for};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/oci-conformance.md");
const LIMIT: Duration = Duration::from_secs(120);

/// What the suite is told to look for.
struct Data<'a> {
    tags: &'a [&'a str],
    image: &'a Manifest,
}

/// Runs the suite on `/v2/hub/team/app` of the proxy; gives the results by name, in the order of its tree.
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
    let tree = text.split("\nConfiguration:\n").next().unwrap_or_default();
    let rows = tree.lines().filter_map(|line| {
        let (name, status) = line.trim().strip_prefix("OCI Conformance Test/")?.rsplit_once(": ")?;
        Some((name.to_owned(), status.to_owned()))
    });
    let rows = rows.collect::<Vec<_>>();
    assert!(text.contains("OCI Conformance Result: Pass"), "{text}");
    rows
}

/// A table of what was really checked, the leaves of the suite's tree.
fn table(columns: &[(&str, Vec<(String, String)>)]) -> String {
    let names = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let mut lines = vec![
        format!("| check | {} |", names.join(" | ")),
        format!("| --- |{}", " --- |".repeat(columns.len())),
    ];
    let maps = columns
        .iter()
        .map(|(_, rows)| rows.iter().cloned().collect::<BTreeMap<_, _>>());
    let maps = maps.collect::<Vec<_>>();
    let mut seen = BTreeSet::new();
    for (name, _) in columns.iter().flat_map(|(_, rows)| rows) {
        let inner = format!("{name}/");
        let is_leaf = !maps.iter().any(|map| map.keys().any(|other| other.starts_with(&inner)));
        let cells = maps.iter().map(|map| map.get(name).map_or("-", String::as_str));
        let cells = cells
            .map(|cell| if cell == "Disabled" { "-" } else { cell })
            .collect::<Vec<_>>();
        if is_leaf && cells.iter().any(|cell| *cell != "-") && seen.insert(name.clone()) {
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

        let tokens = Tokens::start().await;
        let scripted = Registry::start().await.guarded(&tokens).redirecting().await;
        scripted
            .push("team/app", "v1", &image)
            .push("team/app", "v2", image.of("amd64"));
        let sbom = Manifest::artifact("application/vnd.test.sbom", "all that is in it", Some(&image));
        scripted.store("team/app", &sbom);

        let mut columns = Vec::new();
        for (name, base, tags) in [
            // It knows no `last`, which is tried with two tags or more.
            ("docker-registry 2.8", real.base(), &["v1"][..]),
            ("scripted, with referrers", scripted.up.base(), &["v1", "v2"]),
        ] {
            let proxy = Proxy::start(&format!("hub:\n  base_url: {base}\n  package: docker\n")).await;
            let data = Data { tags, image: &image };
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
