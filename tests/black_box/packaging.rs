//! What is delivered beside the program: a dashboard and alerts, held against the metrics that there really are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::common::fleet::{Backends, settled};
use crate::common::oci::daemon;
use crate::common::{Reply, Upstream, refused, run};
use regex::Regex;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");
const RULES: &str = "prometheus/artifactapi.rules.yaml";

fn file(name: &str) -> String {
    let path = Path::new(FOLDER).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Labels by the name of the sample.
type Exposed = BTreeMap<String, BTreeSet<String>>;

/// What a node exposes that has a bucket and another node, and has been asked for something, of a host that is away, too.
async fn exposed() -> Exposed {
    let up = Upstream::start().await;
    up.fallback(|_| {
        Reply::ok("x")
            .header("RateLimit-Limit", "100")
            .header("RateLimit-Remaining", "99")
    });
    let backends = Backends::start().await;
    let remotes = format!(
        "files:\n  base_url: {}\naway:\n  base_url: http://{}\n",
        up.base(),
        refused()
    );
    let nodes = [backends.node(&remotes).await, backends.node(&remotes).await];
    for (number, node) in nodes.iter().enumerate() {
        node.fetch("files", &format!("of-{number}")).await.ok();
        node.until_cached("files", "x").await;
        node.fetch("files", "x").await.ok();
        settled(node).await;
        for path in ["a", "b", "c"] {
            node.fetch("away", path).await.expect(502);
        }
    }
    let mut exposed = Exposed::new();
    let text = nodes[1].request("GET", "/metrics", &[], b"").await.ok().text();
    let label = Regex::new(r#"(\w+)=""#).unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let labels = exposed.entry(name.to_owned()).or_default();
        labels.extend(label.captures_iter(line).map(|found| found[1].to_owned()));
    }
    exposed
}

/// Complains of each metric and label in `expression` that is not exposed.
fn check(expression: &str, place: &str, exposed: &Exposed) {
    let metric = Regex::new(r"\bartifactapi_\w+").unwrap();
    let matchers = Regex::new(r#"^\{([^}]*)\}"#).unwrap();
    let label = Regex::new(r#"(\w+)\s*(?:=~|!~|!=|=)\s*""#).unwrap();
    let mut uses = 0;
    for found in metric.find_iter(expression) {
        uses += 1;
        let name = found.as_str();
        let labels = exposed.get(name);
        let labels = labels.unwrap_or_else(|| panic!("{place}: nothing exposes {name}"));
        let Some(matchers) = matchers.captures(&expression[found.end()..]) else {
            continue;
        };
        for found in label.captures_iter(&matchers[1]) {
            // Prometheus adds these when it scrapes.
            let known = ["instance", "job"].contains(&&found[1]) || labels.contains(&found[1]);
            assert!(known, "{place}: {name} has no label {}", &found[1]);
        }
    }
    assert!(
        uses > 0 || expression.contains("up{"),
        "{place}: {expression} asks for nothing"
    );
}

/// The alerts, and what they look at.
fn alerts() -> Vec<(String, String)> {
    let text = file(RULES);
    let parts = text.split("- alert: ").skip(1);
    let expression = Regex::new(r"(?s)expr:(.*?)\n        (?:for|labels):").unwrap();
    parts
        .map(|part| {
            let name = part.lines().next().unwrap_or_default().trim().to_owned();
            let found = expression
                .captures(part)
                .unwrap_or_else(|| panic!("{name} looks at nothing"));
            (name, found[1].to_owned())
        })
        .collect()
}

#[test]
fn alerts_and_dashboard_ask_for_what_is_exposed() {
    run(async {
        let exposed = exposed().await;
        let alerts = alerts();
        assert!(alerts.len() > 15, "{alerts:?}");
        for (name, expression) in &alerts {
            check(expression, name, &exposed);
        }
        let dashboard: Value = serde_json::from_str(&file("grafana/artifactapi.json")).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        let mut asked = 0;
        for panel in panels {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().expect("an expression");
                check(expression, &panel["title"].to_string(), &exposed);
                asked += 1;
            }
        }
        assert!(asked > 30, "{asked}");
        for variable in dashboard["templating"]["list"].as_array().expect("variables") {
            if let Some(definition) = variable["definition"].as_str() {
                check(definition, &variable["name"].to_string(), &exposed);
            }
        }
    });
}

#[test]
fn promtool_takes_the_rules_and_their_tests() {
    let rules = Path::new(FOLDER).join(RULES);
    let tests = Path::new(FOLDER).join("prometheus/artifactapi.rules.test.yaml");
    for (what, file) in [("check", rules), ("test", tests)] {
        let promtool: PathBuf = daemon("promtool");
        let said = std::process::Command::new(promtool)
            .args([what, "rules"])
            .arg(&file)
            .output()
            .expect("promtool");
        let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success() && text.contains("SUCCESS"), "{text}");
    }
    // Each alert has a test of its own.
    let tested = file("prometheus/artifactapi.rules.test.yaml");
    for (name, _) in alerts() {
        assert!(tested.contains(&format!("alertname: {name}\n")), "{name} has no test");
    }
}

#[test]
fn each_alert_is_explained() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let operations = std::fs::read_to_string(path).expect("docs/operations.md");
    for (name, _) in alerts() {
        assert!(
            operations.contains(&format!("`{name}`")),
            "{name} is not in docs/operations.md"
        );
    }
    let metric = Regex::new(r"artifactapi_[a-z_]+").unwrap();
    let rules = file(RULES) + &file("grafana/artifactapi.json");
    let told: BTreeSet<&str> = metric.find_iter(&operations).map(|found| found.as_str()).collect();
    for found in metric.find_iter(&rules) {
        let name = found.as_str();
        let family = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        assert!(
            told.contains(name) || family.is_some_and(|family| told.contains(family)),
            "{name} is not in docs/operations.md"
        );
    }
}
