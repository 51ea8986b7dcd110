//! The keys of a remote.

use std::time::Duration;

use super::*;

#[test]
fn every_problem_of_every_remote_is_told_with_its_place() {
    let case = Case::new(
        "remotes:\n  a:\n    base-url: https://a\n    immutable_patterns: ['(']\n    mutable_ttl: 5\n  \
         b:\n    base_url: https://b\n    offline: \"true\"\n    quarantine_new: true\n    cache: {mutable_ttl: -1}\n  \
         a:\n    base_url: https://c\n    package: nmp\n  'ü/': {type: local, base_url: https://d}\n",
    );
    finds(
        &case,
        &[
            "remotes.yaml:2:3: error: remote \"a\": `base_url` is missing\n    hint: add",
            "remotes.yaml:3:5: error: remote \"a\": unknown key `base-url`\n    hint: did you mean `base_url`?",
            "remotes.yaml:4:26: error: remote \"a\": `immutable_patterns`: '(' is no pattern: ",
            "remotes.yaml:5:5: error: remote \"a\": unknown key `mutable_ttl`\n    hint: `mutable_ttl` belongs under `cache:`",
            "remotes.yaml:8:14: error: remote \"b\": `offline` must be true or false, and is a string\n    \
             hint: write true without quotes",
            "remotes.yaml:9:5: error: remote \"b\": `quarantine_new` without `quarantine_days`",
            "remotes.yaml:10:26: error: remote \"b\": `cache.mutable_ttl` \"-1\": must not be negative",
            "remotes.yaml:11:3: error: remote \"a\": a second remote of this name\n    hint: the first stands in line 2",
            "remotes.yaml:13:14: error: remote \"a\": `package` \"nmp\": must be one of generic, alpine, rpm, docker, \
             pypi, npm, helm, cargo\n    hint: did you mean npm?",
            "remotes.yaml:14:3: error: remote \"ü/\": the name cannot stand in a URL",
            "remotes.yaml:14:23: error: remote \"ü/\": `base_url` on a local remote",
        ],
    );
}

#[test]
fn values_come_from_the_environment() {
    let case = generic(
        "username: '${WHO}'\npassword: 'a$$b$c${PASSWORD}'\nheaders: {X-Token: 'Bearer ${PASSWORD}'}\n\
         mutable_patterns: ['a${WHO}$']\ncache: {mutable_ttl: '${TTL}'}\noffline: ${OFF}",
    );
    finds(
        &case,
        &[
            "variable WHO is not",
            "variable PASSWORD is not",
            "PASSWORD",
            "variable TTL",
            "variable OFF",
        ],
    );
    let case = case
        .env("WHO", "me")
        .env("PASSWORD", "geheim")
        .env("TTL", "5m")
        .env("OFF", "true");
    let remote = case.remote("x");
    let credentials = remote.credentials.as_ref().expect("given");
    assert_eq!(
        (credentials.username.as_str(), password_of(credentials)),
        ("me", "a$b$cgeheim")
    );
    assert_eq!(remote.headers[0].1, "Bearer geheim");
    assert_eq!(remote.mutable_patterns[0].as_str(), "a${WHO}$");
    assert_eq!(remote.ttl.mutable, Duration::from_secs(300));
    assert!(remote.offline);
    // What came from there is not repeated, neither in errors nor in the configuration shown.
    let bad = one("base_url: 'https://u:${P}@h'\nproxy: 'socks5://${P}'\nusername: a").env("P", "geheim");
    assert!(
        bad.problems().iter().all(|p| !p.contains("geheim")),
        "{:?}",
        bad.problems()
    );
    let path = one("base_url: 'https://h/${P}/x'\ndescription: '${P}'\nproxy: 'http://u:${P}@h'").env("P", "geheim");
    let json = path.config().to_redacted_json().to_string();
    assert!(!json.contains("geheim") && json.contains("https://h/${P}/x"), "{json}");
    assert_eq!(
        path.remote("x").base_url.as_ref().map(|u| u.as_str()),
        Some("https://h/geheim/x/")
    );
}

#[test]
fn passwords_come_from_files() {
    let case = generic("username: u\npassword_file: secret");
    finds(
        &case,
        &["5:20: error: remote \"x\": `password_file` \"secret\": cannot be read"],
    );
    case.write("secret", "geheim\r\n");
    assert_eq!(
        case.remote("x").credentials.as_ref().map(|c| password_of(c).to_owned()),
        Some("geheim".into())
    );
    case.write("secret", "\n");
    finds(&case, &["is empty"]);
    let both = generic("username: u\npassword: p\npassword_file: /dev/null\nprotected: false");
    finds(
        &both,
        &["6:5: error: remote \"x\": both `password` and `password_file`", "6:20"],
    );
    finds(
        &generic("username: u"),
        &["4:5: error: remote \"x\": `username` without `password`"],
    );
    finds(
        &generic("password: u"),
        &["4:5: error: remote \"x\": `password` without `username`"],
    );
    finds(
        &generic("username: 'a:b'\npassword: c\nprotected: false"),
        &["4:15: error: remote \"x\": `username` holds a colon"],
    );
}

#[test]
fn credentials_may_be_kept_below_the_base_url() {
    let keys = |base: &str, within: &str| {
        one(&format!(
            "base_url: https://h{base}\nusername: u\npassword: p\n{within}\nprotected: false"
        ))
    };
    for (within, expected) in [
        ("", CredentialsWithin::Host),
        ("credentials_within: host", CredentialsWithin::Host),
        ("credentials_within: base_url", CredentialsWithin::BaseUrl),
    ] {
        let case = keys("/team", within);
        assert_eq!(case.problems(), Vec::<String>::new(), "{within}");
        assert_eq!(case.remote("x").credentials_within, expected, "{within}");
        let shown = case.config().to_redacted_json();
        let shown = shown["remotes"]["x"]["credentials_within"].as_str();
        assert_eq!(
            shown == Some("base_url"),
            expected == CredentialsWithin::BaseUrl,
            "{shown:?}"
        );
    }
    finds(
        &keys("/team", "credentials_within: path"),
        &["6:25: error: remote \"x\": `credentials_within` \"path\": must be one of host, base_url"],
    );
    finds(
        &keys("", "credentials_within: base_url"),
        &["6:5: warning: remote \"x\": `credentials_within: base_url` narrows nothing"],
    );
    finds(
        &one("base_url: https://h/team\ncredentials_within: base_url"),
        &["warning: remote \"x\": `credentials_within` without `username` or `headers`"],
    );
}

#[test]
fn contradictions_are_errors() {
    let local = |keys: &str| one(&format!("type: local\n{keys}"));
    for key in [
        "base_url: https://a",
        "proxy: http://p",
        "offline: true",
        "quarantine_new: true",
        "quarantine_days: 3",
        "quarantine_mode: observe",
        "freeze: 2026-11-01",
        "verify: warn",
        "allow_packages: [a]",
        "deny_packages: [a]",
    ] {
        let name = key.split(':').next().expect("a key");
        finds(
            &local(key),
            &[&format!("4:5: error: remote \"x\": `{name}` on a local remote")],
        );
    }
    assert!(
        local("offline: false\nquarantine_new: false\nquarantine_days: 0\nproxy: null\nverify: off")
            .problems()
            .is_empty()
    );
    finds(
        &local("package: docker"),
        &["4:5: error: remote \"x\": docker repositories cannot be local"],
    );
    finds(
        &local("package: pypi\nindex_url: https://a"),
        &["5:5: error: remote \"x\": `index_url` on a local"],
    );
    finds(
        &generic("index_url: https://a"),
        &["4:5: error: remote \"x\": `index_url` means nothing"],
    );
    finds(
        &generic("tarball_urls: upstream"),
        &["4:5: error: remote \"x\": `tarball_urls` means nothing"],
    );
    finds(
        &generic("quarantine_days: 3"),
        &["warning: remote \"x\": `quarantine_days` holds nothing back"],
    );
    finds(
        &generic("quarantine_new: true\nquarantine_days: 99999999999"),
        &["5:22: error: remote \"x\": `quarantine_days`"],
    );
    finds(
        &generic("verify: enforced"),
        &["4:13: error: remote \"x\": `verify` \"enforced\": must be one of off, warn, enforce"],
    );
    finds(
        &generic("serve_stale_on: [429, 200, '503']"),
        &["4:27: error", "4:32: error"],
    );
    finds(
        &generic("proxy: https://p"),
        &["4:12: error: remote \"x\": `proxy` \"https://p\": only http:// proxies"],
    );
    finds(
        &generic("hosts: npm.example"),
        &["4:12: error: remote \"x\": `hosts` must be a list, and is a single value"],
    );
    finds(
        &generic("upstream: {idle_timeout: 0}"),
        &["4:30: error: remote \"x\": `upstream.idle_timeout` \"0\": must be longer"],
    );
    finds(
        &one("base_url: https://u:p@h"),
        &["3:15: error: remote \"x\": `base_url` \"https://***@h\": has credentials"],
    );
    finds(&one("base_url:"), &["2:3: error: remote \"x\": `base_url` is missing"]);
    finds(&one("base_url: https://h/?a=b"), &["has a query"]);
    let hosts = Case::new(
        "remotes:\n  a: {base_url: https://a, hosts: [H.example, h.example]}\n  b: {base_url: https://b, hosts: [h.EXAMPLE]}",
    );
    finds(
        &hosts,
        &[
            "3:36: error: remote \"b\": the host \"h.example\" already belongs to the remote \"a\"\n    hint: it is named there in line 2",
        ],
    );
    let headers =
        generic("headers:\n  Host: a\n  If-Match: b\n  Range: c\n  'b d': e\n  X: \"a\\nb\"\n  y: 1\n  Y: 2\n  Z: [1]");
    finds(
        &headers,
        &[
            "5:7: error",
            "6:7: error",
            "7:7: error",
            "8:7: error",
            "9:10: error",
            "11:7: error",
            "12:10: error",
        ],
    );
}

#[test]
fn what_answers_say_beside_the_content() {
    let remote = generic("headers_keep: [X-Name, etag]\nactive_content: true\nhosts: [a.example]").remote("x");
    assert_eq!(remote.headers_keep, ["x-name", "etag"]);
    assert!(remote.active_content);
    finds(
        &generic("headers_keep: ['a b', Set-Cookie, X-Artifact-Source, Content-Length, vary]"),
        &[
            "4:20: error: remote \"x\": `headers_keep` \"a b\": is no name of a header",
            "`headers_keep` \"Set-Cookie\": is never passed on",
            "\"X-Artifact-Source\": is never passed on",
            "\"Content-Length\": is never passed on",
            "\"vary\": is never passed on",
        ],
    );
    finds(
        &generic("active_content: true"),
        &["4:5: error: remote \"x\": `active_content` without `hosts`"],
    );
}

#[test]
fn the_hosts_that_a_remote_names_are_known_once() {
    let remote = one("base_url: https://Files.Example:8443/x\npackage: docker\n\
                      file_hosts: ['http://[::1]:80', files.example]\ntoken_realms: [auth.example]")
    .remote("x");
    let names: Vec<&str> = remote.own_hosts.iter().map(|own| own.name.as_str()).collect();
    assert_eq!(names, ["files.example", "::1", "auth.example"]);
}

#[test]
fn npm_without_mutable_patterns_is_warned_of() {
    let npm = "package: npm\n";
    finds(
        &generic(npm),
        &["2:3: warning: remote \"x\": npm without `mutable_patterns`: package metadata counts as"],
    );
    finds(
        &generic(&format!("{npm}immutable_patterns: ['\\.tgz$']")),
        &["metadata is refused with 403"],
    );
    assert!(generic(&format!("{npm}mutable_patterns: ['^']")).problems().is_empty());
}

#[test]
fn packages_are_named_as_their_ecosystem_does() {
    let pypi = |keys: &str| generic(&format!("package: pypi\n{keys}"));
    let case = pypi("allow_packages: [Corp_Lib, 'a.*']\ndeny_packages: []");
    assert_eq!(case.problems(), Vec::<String>::new());
    let remote = case.remote("x");
    let allowed = remote.allow_packages.as_ref().expect("given");
    assert!(allowed[0].is_match("corp-lib") && allowed[1].is_match("a-b") && !allowed[1].is_match("ab"));
    assert!(remote.deny_packages.is_empty());
    let shown = case.config().to_redacted_json()["remotes"]["x"].clone();
    assert_eq!(shown["allow_packages"], serde_json::json!(["corp-lib", "a-*"]));
    assert_eq!(shown["deny_packages"], serde_json::json!([]));
    assert!(pypi("allow_packages:").remote("x").allow_packages.is_none());
    assert!(
        pypi("allow_packages: []")
            .remote("x")
            .allow_packages
            .as_ref()
            .is_some_and(Vec::is_empty)
    );
    // What is denied is so in any case: whether an upstream tells them apart, nobody knows here.
    let npm = generic("package: npm\nmutable_patterns: ['^']\nallow_packages: ['@corp/*']\ndeny_packages: ['@corp/*']");
    let npm = npm.remote("x");
    assert!(npm.deny_packages[0].is_match("@Corp/a/b") && !npm.deny_packages[0].is_match("@corp"));
    assert!(!npm.allow_packages.as_ref().expect("given")[0].is_match("@Corp/a"));
    finds(
        &pypi("allow_packages: ['']\ndeny_packages: ['[a']"),
        &[
            "5:22: error: remote \"x\": `allow_packages` \"\": names no package",
            "6:21: error: remote \"x\": `deny_packages` \"[a\": is no pattern of package names",
        ],
    );
    finds(
        &pypi("deny_packages: a"),
        &["5:20: error: remote \"x\": `deny_packages` must be a list"],
    );
    let unnamed = generic("allow_packages: [a]\ndeny_packages: [b]");
    finds(
        &unnamed,
        &[
            "4:5: warning: remote \"x\": `allow_packages` has no effect: paths of package generic name no packages",
            "5:5: warning: remote \"x\": `deny_packages` has no effect",
        ],
    );
    let unnamed = unnamed.remote("x");
    assert!(unnamed.allow_packages.is_none() && unnamed.deny_packages.is_empty());
}

#[test]
fn null_patterns_differ_from_none() {
    assert!(generic("immutable_patterns:").remote("x").immutable_patterns.is_none());
    assert!(
        generic("immutable_patterns: []")
            .remote("x")
            .immutable_patterns
            .as_ref()
            .is_some_and(Vec::is_empty)
    );
    finds(
        &generic("immutable_patterns: [null, {a: b}]"),
        &["4:26: error: remote", "4:32: error: remote"],
    );
}

#[test]
fn what_is_held_and_what_is_not_is_read() {
    let text = "freeze: 2026-11-01\nremotes:\n  x:\n    base_url: https://a\n    package: pypi\n    quarantine_new: true\n    \
                quarantine_days: 3\n    quarantine_overrides: {Corp_*: 0, \"*\": 7}\n    quarantine_exemptions:\n    - {package: \
                Six, versions: [\"1.0\"], until: 2030-01-31, reason: fixes it}\n    quarantine_missing_date: deny\n    \
                quarantine_clock: both\n    quarantine_mode: observe\n  y:\n    base_url: https://b\n    freeze: \
                2026-11-02T00:00:30Z\n  z:\n    type: local\n";
    let case = Case::new(text);
    assert_eq!(case.problems(), Vec::<String>::new());
    let config = case.config();
    let quarantine = &config.remotes["x"].quarantine;
    let days = |name| quarantine.days_of(Some(name));
    assert_eq!((days("corp-a"), days("other"), quarantine.days_of(None)), (0, 7, 3));
    assert_eq!(quarantine.missing_date, MissingDate::Deny);
    assert_eq!(quarantine.freeze, Some(1_793_491_200));
    assert!(quarantine.is_on() && !quarantine.is_enforced());
    assert_eq!(config.remotes["y"].quarantine.freeze, Some(1_793_577_630));
    assert!(config.remotes["y"].quarantine.is_enforced());
    assert!(!config.remotes["z"].quarantine.is_on());
    assert_ne!(quarantine.fingerprint, config.remotes["y"].quarantine.fingerprint);
    let shown = &config.to_redacted_json()["remotes"]["x"];
    assert_eq!(shown["quarantine_overrides"], serde_json::json!({"corp-*": 0, "*": 7}));
    assert_eq!(
        shown["quarantine_exemptions"],
        serde_json::json!([{
            "package": "six", "versions": ["1.0"], "until": "2030-01-31T00:00:00Z", "reason": "fixes it",
        }])
    );
    assert_eq!(shown["freeze"], "2026-11-01T00:00:00Z");
    assert_eq!(shown["quarantine_clock"], "both");
}

#[test]
fn what_cannot_be_held_is_told() {
    finds(
        &generic("freeze: yesterday"),
        &["4:13: error: remote \"x\": `freeze` \"yesterday\": is no date"],
    );
    finds(
        &generic("quarantine_mode: observe"),
        &["4:5: warning: remote \"x\": `quarantine_mode` has no effect"],
    );
    let on = |keys: &str| generic(&format!("quarantine_new: true\nquarantine_days: 3\n{keys}"));
    finds(
        &on("quarantine_exemptions: [{package: x, until: 2030-01-01}]"),
        &["6:29: error: remote \"x\": an exemption without `reason`"],
    );
    finds(
        &on("quarantine_exemptions: [{package: x, until: 2020-01-01, reason: y}]"),
        &["6:29: warning: remote \"x\": the exemption of `x` has ended"],
    );
    finds(
        &on("quarantine_overrides: {a: x, '[': 3}"),
        &["6:31: error: remote", "6:34: error: remote"],
    );
    finds(&on("quarantine_clock: sundial"), &["6:23: error: remote"]);
}

#[test]
fn changes_are_refused_where_the_remote_says_so_itself() {
    for (keys, verify, refuses) in [
        ("", Verify::Enforce, false),
        ("verify: enforce", Verify::Enforce, true),
        ("verify: enforce\ncache: {immutable_ttl: 1h}", Verify::Enforce, false),
        ("verify: warn", Verify::Warn, false),
        ("verify: off", Verify::Off, false),
    ] {
        let case = generic(keys);
        let remote = case.remote("x");
        assert_eq!((remote.verify, remote.refuses_changes), (verify, refuses), "{keys}");
    }
}

#[test]
fn what_local_remotes_take() {
    let case = one("type: local\noverwrite: false\nmax_upload: 5MB\nquota: 1GiB");
    let uploads = case.remote("x").uploads;
    assert_eq!(
        (uploads.overwrite, uploads.longest, uploads.quota),
        (false, Some(5_000_000), Some(1 << 30))
    );
    let uploads = one("type: local").remote("x").uploads;
    assert_eq!((uploads.overwrite, uploads.longest, uploads.quota), (true, None, None));
    for key in ["overwrite: true", "max_upload: 1", "quota: 1"] {
        let name = key.split_once(':').unwrap().0;
        finds(
            &generic(key),
            &[&format!(
                "`{name}` on a remote with an upstream, to which nothing is uploaded"
            )],
        );
    }
    finds(&one("type: local\nquota: many"), &["`quota`"]);
}

#[test]
fn unknown_keys_are_told_all_that_there_are() {
    finds(
        &generic("zzzzzzzzzzzz: 1"),
        &[
            "the keys here are base_url, type, package, description, username, password, password_file, \
           password_command, password_command_ttl, headers, credentials_within, headers_keep, active_content, \
           protected, allow_packages, deny_packages, immutable_patterns, mutable_patterns, check_mutable_updates, index_url, hosts, file_hosts, token_realms, \
           proxy, tls, offline, serve_stale_on, overwrite, max_upload, quota, quarantine_new, quarantine_days, quarantine_overrides, \
           quarantine_exemptions, quarantine_missing_date, quarantine_clock, quarantine_mode, freeze, verify, \
           client_revalidation, tarball_urls, release_dates, refresh, upstream, cache",
        ],
    );
}

fn index_url(remote: &Remote) -> Option<url::Url> {
    let key = remote.package.keys.iter().find(|key| key.name == "index_url")?;
    remote.own.url(key).cloned()
}

#[test]
fn the_public_python_index_belongs_to_its_files() {
    let shipped = Case::new(SHIPPED).config();
    let files = shipped.remotes["pypi"]
        .base_url
        .as_ref()
        .and_then(|u| u.host_str())
        .expect("a host")
        .to_owned();
    let index = index_url(&shipped.remotes["pypi"]).expect("an index");
    let of = |url: &str, more: &str| index_url(&one(&format!("base_url: {url}\npackage: pypi\n{more}")).remote("x"));
    let upper = files.to_uppercase();
    for url in [
        format!("http://{files}"),
        format!("HTTPS://{upper}:443//"),
        format!("http://{files}:80/packages/"),
        format!("https://{files}."),
    ] {
        assert_eq!(of(&url, ""), Some(index.clone()), "{url}");
    }
    for url in [
        format!("https://{files}:8443"),
        format!("https://x.{files}"),
        "https://gitea.example/pypi".to_owned(),
    ] {
        assert_eq!(of(&url, ""), None, "{url}");
    }
    let own = of(&format!("https://{files}"), "index_url: https://i.example/root");
    assert_eq!(own.map(String::from).as_deref(), Some("https://i.example/root/"));
    let generic = one(&format!("base_url: https://{files}")).remote("x");
    assert_eq!(index_url(&generic), None);
    let simple = one("base_url: https://a\npackage: pypi\nindex_url: https://a/simple");
    finds(&simple, &["5:16: warning: remote \"x\": `index_url` ends in /simple"]);
}

fn password_of(credentials: &crate::config::Credentials) -> &str {
    match &credentials.password {
        crate::config::Password::Fixed(secret) => secret.reveal(),
        crate::config::Password::Command(command) => panic!("{command:?}"),
    }
}

#[test]
fn a_password_may_come_from_a_program() {
    let docker = |keys: &str| generic(&format!("package: docker\n{keys}"));
    let case =
        docker("username: AWS\npassword_command: [aws, ecr, get-login-password]\ntoken_realms: [auth.example.org]");
    let remote = case.remote("x");
    match &remote.credentials.as_ref().expect("given").password {
        crate::config::Password::Command(command) => {
            assert_eq!(command.argv, ["aws", "ecr", "get-login-password"]);
            assert_eq!(command.ttl, Duration::from_secs(600));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(remote.own.token_realms()[0].host, "auth.example.org");
    let shown = case.config().to_redacted_json()["remotes"]["x"].clone();
    assert_eq!(shown["password_command"], serde_json::json!(["aws", "***"]));
    let shown = shown.to_string();
    assert!(!shown.contains("get-login-password"), "{shown}");
    for (keys, expected) in [
        ("password_command: [a]", "`password_command` without `username`"),
        (
            "username: u\npassword_command: []",
            "`password_command` names no program",
        ),
        ("username: u\npassword_command: a", "`password_command` must be a list"),
        (
            "username: u\npassword: p\npassword_command: [a]\nprotected: false",
            "both `password` and `password_command` are given",
        ),
        (
            "password_command_ttl: 5",
            "`password_command_ttl` without `password_command`",
        ),
    ] {
        finds(&docker(keys), &[expected]);
    }
    finds(
        &generic("token_realms: [a.example]"),
        &["`token_realms` means nothing to package generic"],
    );
}

#[test]
fn the_default_remote_is_a_registry() {
    let remotes =
        "remotes:\n  hub: {package: docker, base_url: https://r.example}\n  files: {base_url: https://f.example}\n";
    let case = || Case::new(remotes);
    let conf = case().conf("docker: {default_remote: hub}").config();
    assert_eq!(conf.settings.default_remotes["docker"], "hub");
    let from_env = case().env("ARTIFACTAPI_DOCKER_DEFAULT_REMOTE", "hub").config();
    assert_eq!(from_env.settings.default_remotes["docker"], "hub");
    for name in ["files", "none"] {
        let case = case().conf(&format!("docker: {{default_remote: {name}}}"));
        finds(&case, &["is no remote of package docker"]);
    }
    finds(
        &case().conf("default_remote: hub"),
        &["`default_remote` belongs under `docker:`"],
    );
}
