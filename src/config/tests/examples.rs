//! What ships and what is documented loads.

use std::time::Duration;

use super::*;

#[test]
fn the_shipped_files_load_without_a_word() {
    let case = Case::new(SHIPPED).conf(SHIPPED_CONF);
    assert_eq!(case.problems(), Vec::<String>::new());
    let config = case.config();
    let names: Vec<&str> = config.remotes.keys().map(String::as_str).collect();
    let expected = "github github-archive alpine almalinux dockerhub ghcr pypi npm hashicorp-helm crates local-generic";
    assert_eq!(names, expected.split(' ').collect::<Vec<_>>());
    assert_eq!(config.remotes["dockerhub"].serve_stale_on, [429]);
    assert_eq!(config.remotes["alpine"].ttl.mutable, Duration::from_secs(7200));
    assert!(config.to_redacted_json()["remotes"]["pypi"]["index_url"].is_string());
    assert!(config.remotes["npm"].mutable_patterns[0].is_match("left-pad"));
    assert!(!config.remotes["npm"].mutable_patterns[0].is_match("left-pad/-/left-pad-1.0.0.tgz"));
    assert!(config.remotes["ghcr"].immutable_patterns.is_none());
    assert!(config.remotes["local-generic"].base_url.is_none());
}

#[test]
fn the_shipped_settings_show_the_defaults() {
    let shown = SHIPPED_CONF.lines().filter_map(|line| line.strip_prefix("# "));
    // Sentences have no colon right behind their first word.
    let keys = shown.filter(|line| {
        line.trim_start()
            .split_once(':')
            .is_some_and(|(key, _)| !key.is_empty() && key.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_')))
    });
    let text: String = keys.flat_map(|line| [line, "\n"]).collect();
    assert_eq!(text.lines().count(), 36, "{text}");
    let (default, shown) = (Case::new("remotes: {}"), Case::new("remotes: {}").conf(&text));
    let (default, shown) = (default.config().to_redacted_json(), shown.config().to_redacted_json());
    let without_paths = |mut json: serde_json::Value| {
        json["settings"]["remotes"] = serde_json::Value::Null;
        json
    };
    assert_eq!(without_paths(default), without_paths(shown));
}

/// The examples of the service before this one, as they were documented there.
#[test]
fn the_documented_examples_load() {
    let shipped = Case::new(SHIPPED).config();
    let host = |name: &str| {
        let url = shipped.remotes[name].base_url.as_ref().expect("a remote has one");
        url.as_str().trim_end_matches('/').to_owned()
    };
    let structure = r##"
remotes:
  remote-name:
    base_url: "https://example.com"
    type: "remote"                 # "remote" or "local"
    package: "generic"             # generic, alpine, rpm, docker, pypi, npm, helm
    description: "..."
    immutable_patterns:            # regex — cached forever
      - ".*\\.tar\\.gz$"
    mutable_patterns:              # regex — expire after mutable_ttl
      - "index\\.yaml$"
    check_mutable_updates: false   # send HEAD (If-None-Match) on TTL expiry
    cache:
      immutable_ttl: 0             # 0 = indefinitely
      mutable_ttl: 3600
"##;
    let generic = r#"
remotes:
  github:
    base_url: "HOST-OF-github"
    type: "remote"
    package: "generic"
    immutable_patterns:
      - "gruntwork-io/terragrunt/.*terragrunt_linux_amd64.*"
    cache:
      immutable_ttl: 0
  github-archive:
    base_url: "HOST-OF-github"
    type: "remote"
    package: "generic"
    immutable_patterns:
      - ".*/archive/refs/tags/.*\\.tar\\.gz$"      # tag archives never change
    mutable_patterns:
      - ".*/archive/refs/heads/main\\.tar\\.gz$"   # branch archives can change
    check_mutable_updates: true
    cache:
      immutable_ttl: 0
      mutable_ttl: 86400
"#;
    let trees = r#"
remotes:
  alpine:
    base_url: "HOST-OF-alpine"
    type: "remote"
    package: "alpine"
    immutable_patterns:
      - ".*/x86_64/.*\\.apk$"
    cache:
      immutable_ttl: 0
      mutable_ttl: 7200
  almalinux:
    base_url: "https://mirror.example.com/almalinux"
    type: "remote"
    package: "rpm"
    immutable_patterns:
      - ".*/x86_64/.*\\.rpm$"
      - ".*/noarch/.*\\.rpm$"
    cache:
      immutable_ttl: 0
      mutable_ttl: 7200
"#;
    let docker = r#"
remotes:
  dockerhub:
    base_url: "HOST-OF-dockerhub"
    type: "remote"
    package: "docker"
    # username / password optional for public images
    cache:
      immutable_ttl: 0
      mutable_ttl: 300
  ghcr:
    base_url: "HOST-OF-ghcr"
    type: "remote"
    package: "docker"
    username: "your-github-username"
    password: "ghp_your_pat"       # read:packages scope
    cache:
      immutable_ttl: 0
      mutable_ttl: 300
"#;
    let pypi = r#"
remotes:
  pypi:
    base_url: "PYPI"
    type: "remote"
    package: "pypi"
    check_mutable_updates: true
    immutable_patterns:
      - "packages/.*\\.whl$"
      - "packages/.*\\.whl\\.metadata$"
      - "packages/.*\\.tar\\.gz$"
      - "packages/.*\\.zip$"
    cache:
      immutable_ttl: 0
      mutable_ttl: 600
  slow:
    base_url: "PYPI"
    type: "remote"
    package: "pypi"
    quarantine_new: true
    quarantine_days: 3             # block packages published in the last 3 days
    immutable_patterns:
      - "packages/.*\\.whl$"
      - "packages/.*\\.tar\\.gz$"
    cache:
      immutable_ttl: 0
      mutable_ttl: 600
"#
    .replace("PYPI", &host("pypi"));
    let rest = r#"
remotes:
  hashicorp-helm:
    base_url: "HOST-OF-hashicorp-helm"
    type: "remote"
    package: "helm"
    check_mutable_updates: true
    immutable_patterns:
      - "\\.tgz$"
    cache:
      immutable_ttl: 0
      mutable_ttl: 3600
  local-generic:
    type: "local"
    package: "generic"
    description: "Local file repository"
    cache:
      immutable_ttl: 0
      mutable_ttl: 0
"#;
    for text in [structure, generic, trees, docker, &pypi, rest] {
        let names = ["github", "alpine", "dockerhub", "ghcr", "hashicorp-helm"];
        let text = names.iter().fold(text.to_owned(), |text, name| {
            text.replace(&format!("HOST-OF-{name}\""), &format!("{}\"", host(name)))
        });
        let text = text.as_str();
        // What is open though it is asked with credentials is said since.
        let mut problems = Case::new(text).problems();
        problems.retain(|problem| !problem.contains("anybody may read"));
        assert_eq!(problems, Vec::<String>::new(), "{text}");
    }
    assert_eq!(Case::new(&pypi).remote("slow").quarantine.days, Some(3));

    let npm = r#"
remotes:
  npm:
    base_url: "NPM"
    type: "remote"
    package: "npm"
    check_mutable_updates: true
    immutable_patterns:
      - "\.tgz$"
    mutable_patterns:
      - "^(?!.*\.tgz$).*"
    cache:
      immutable_ttl: 0
      mutable_ttl: 600
"#
    .replace("NPM", &host("npm"));
    let case = Case::new(&npm);
    finds(
        &case,
        &[
            "remotes.yaml:9:10: warning: remote \"npm\": \\. is no escape in a double-quoted YAML string: \
             taken as the backslash that was meant\n    hint: write '\\.tgz$' or \"\\\\.tgz$\"",
            "remotes.yaml:11:16: warning: remote \"npm\": \\. is no escape",
        ],
    );
    let remote = case.remote("npm");
    assert_eq!(remote.mutable_patterns[0].as_str(), r"^(?!.*\.tgz$).*");
    assert_eq!(
        remote.immutable_patterns.as_ref().expect("given")[0].as_str(),
        r"\.tgz$"
    );
}
