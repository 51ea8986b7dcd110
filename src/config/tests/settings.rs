//! Flags, variables, the settings file, and the configuration as a whole.

use std::path::Path;
use std::time::Duration;

use super::*;

#[test]
fn the_time_that_stopping_may_take_can_be_set() {
    let limit = |conf: &str| Case::new("remotes: {}").conf(conf).config().settings.stop_timeout;
    assert_eq!(limit(""), Duration::from_secs(30));
    assert_eq!(limit("stop_timeout: 2m"), Duration::from_secs(120));
    let case = Case::new("remotes: {}").conf("stop_timeout: 0");
    finds(&case, &["conf.yaml:1:15: error: `stop_timeout`"]);
}

#[test]
fn the_access_log_is_off_or_goes_somewhere() {
    let target = |conf: &str| Case::new("remotes: {}").conf(conf).config().settings.access_log;
    assert_eq!(target(""), LogTarget::Off);
    assert_eq!(target("access_log: off"), LogTarget::Off);
    assert_eq!(target("access_log: stdout"), LogTarget::Stdout);
    match target("access_log: access.log") {
        LogTarget::File(path) => assert!(path.is_absolute() && path.ends_with("access.log"), "{path:?}"),
        other => panic!("{other:?}"),
    }
    for bad in ["access_log: /no/such/folder/log", "access_log: /", "access_log: ''"] {
        let case = Case::new("remotes: {}").conf(bad);
        finds(&case, &["conf.yaml:1:13: error: `access_log`"]);
    }
}

#[test]
fn a_flag_wins_over_its_variable_and_that_over_the_file() {
    let mut case = Case::new("remotes: {}").conf("listen: ['127.0.0.1:1']\npublic_url: https://file/");
    let listen = |case: &Case| {
        case.config()
            .settings
            .listen
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(listen(&case), "127.0.0.1:1");
    case = case
        .env("ARTIFACTAPI_LISTEN", "localhost:2, [::1]:3")
        .env("ARTIFACTAPI_PUBLIC_URL", "https://env/a/");
    assert_eq!(listen(&case), "127.0.0.1:2 [::1]:3");
    assert_eq!(
        case.config().settings.public_url.map(String::from).as_deref(),
        Some("https://env/a")
    );
    case.flags.listen = vec!["0.0.0.0:4".into(), "[::]:4".into()];
    case.flags.public_url = Some("https://flag".into());
    assert_eq!(listen(&case), "0.0.0.0:4 [::]:4");
    case.flags.listen = vec!["example:4".into()];
    finds(&case, &["error: --listen \"example:4\": not an address"]);
    let default = load(
        &formats::packages(),
        &Flags {
            remotes: case.flags.remotes.clone(),
            ..Flags::default()
        },
        &Environment::default(),
        7,
    );
    let default = default.config.expect("the defaults load");
    assert_eq!(default.settings.listen, ["127.0.0.1:8000".parse().expect("an address")]);
    assert_eq!(
        (default.generation, default.settings.data_dir.as_path()),
        (7, Path::new("./data"))
    );
}

#[test]
fn settings_are_checked_with_place() {
    let case = Case::new("remotes: {}").conf(
        "listen: [':80']\ntrusted_proxies: [10.0.0.0/8, x]\nresolver: ['1.1.1.1:53', 9]\ncache: {disk_byte: 1}\n\
         upstream: {max_concurrent: 0, connect_timeout: 5q}\ntls: {cert: none}\ndata_dir: x\npublic_url: 'https://a?b'\n",
    );
    finds(
        &case,
        &[
            "conf.yaml:1:10: error: `listen` \":80\": not an address",
            "conf.yaml:2:31: error: `trusted_proxies` \"x\": not a network",
            "conf.yaml:3:26: error: `resolver` \"9\"",
            "conf.yaml:4:9: error: unknown key `cache.disk_byte`\n    hint: did you mean `disk_bytes`?",
            "conf.yaml:5:28: error: `upstream.max_concurrent` \"0\": must be a whole number from 1 to",
            "conf.yaml:5:48: error: `upstream.connect_timeout` \"5q\": \"q\" is no unit of time",
            "conf.yaml:6:1: error: `tls.key` is missing",
            "conf.yaml:6:13: error: `tls.cert` \"none\": cannot be read",
            "conf.yaml:7:1: error: unknown key `data_dir`\n    hint: `data_dir` belongs on the command line",
            "conf.yaml:8:13: error: `public_url` \"https://a?b\": has a query",
        ],
    );
    let scrub_rate = |conf: &str| generic("").conf(conf).config().settings.cache.scrub_rate;
    assert_eq!(scrub_rate("resolver: []"), 4_000_000);
    assert_eq!(scrub_rate("cache: {scrub_rate: 1MiB}"), 1 << 20);
    assert_eq!(scrub_rate("cache: {scrub_rate: 0}"), 0);
    finds(
        &generic("").conf("scrub_rate: 1MB"),
        &["conf.yaml:1:1: error: unknown key `scrub_rate`\n    hint: `scrub_rate` belongs under `cache:`"],
    );
    let case = Case::new("remotes: {}").conf(
        "clients: {head_timeout: 0, head_bytes: 1KiB, body_rate: 0, http2_streams: 0, idle: 1s}\nbody_timeout: 1s\n",
    );
    finds(
        &case,
        &[
            "conf.yaml:1:25: error: `clients.head_timeout` \"0\": must be longer than nothing",
            "conf.yaml:1:40: error: `clients.head_bytes` \"1KiB\": must be from 4KiB to 1MB",
            "error: `clients.body_rate` \"0\": must be more than nothing",
            "error: `clients.http2_streams` \"0\": must be a whole number from 1 to",
            "error: unknown key `clients.idle`",
            "conf.yaml:2:1: error: unknown key `body_timeout`\n    hint: `body_timeout` belongs under `clients:`",
        ],
    );
    let case = Case::new("remotes: {}").conf("clients: {body_timeout: 10s, body_rate: 2KB, http2_unread: 7}");
    let clients = case.config().settings.clients;
    assert_eq!((clients.body_rate, clients.http2_unread), (2000, 7));
    assert_eq!(clients.head_bytes, ClientSettings::default().head_bytes);
    let now = std::time::Instant::now();
    assert_eq!(clients.body_until(now, 10_000), now + Duration::from_secs(5));
    // What comes fast saves nothing up.
    let saved = clients.body_until(now + Duration::from_secs(9), 1_000_000) - now;
    assert!(
        saved >= Duration::from_secs(10) && saved < Duration::from_secs(11),
        "{saved:?}"
    );
    // A remote takes what it does not set itself from the settings.
    let case = generic("upstream: {idle_timeout: 7s, least_rate: 0, transfer_timeout: 1h}")
        .conf("upstream: {connect_timeout: 250ms, least_rate: 5KB, rate_window: 1m}");
    let timeouts = case.remote("x").timeouts;
    assert_eq!(
        (timeouts.connect, timeouts.idle),
        (Duration::from_millis(250), Duration::from_secs(7))
    );
    assert_eq!(
        (timeouts.least_rate, timeouts.rate_window, timeouts.whole),
        (0, Duration::from_secs(60), Duration::from_secs(3600))
    );
}

#[test]
fn a_remotes_share_follows_from_all_places_or_is_set() {
    let shares = [
        ("", (256, 128)),
        ("{max_concurrent: 4}", (4, 4)),
        ("{max_concurrent: 30}", (30, 15)),
        ("{max_concurrent: 4, max_per_remote: 1}", (4, 1)),
        ("{max_per_remote: 7}", (256, 7)),
    ];
    for (text, expected) in shares {
        let upstream = generic("")
            .conf(&format!("upstream: {text}"))
            .config()
            .settings
            .upstream;
        assert_eq!((upstream.max_concurrent, upstream.max_per_remote), expected, "{text}");
    }
}

#[test]
fn files_that_are_missing() {
    let mut case = Case::new("");
    case.flags.remotes = Some(case.folder.path().join("no.yaml"));
    case.flags.conf = Some(case.folder.path().join("none.yaml"));
    finds(
        &case,
        &[
            "none.yaml: error: the file does not exist",
            "no.yaml: error: the file does not exist\n    hint: create it, or name another file with --remotes",
        ],
    );
}

#[test]
fn groups_of_variables_are_whole_or_absent() {
    let case = || Case::new("remotes: {}");
    let s3 = || {
        let case = case().env("MINIO_ENDPOINT", "minio:9000").env("MINIO_ACCESS_KEY", "a");
        case.env("MINIO_SECRET_KEY", "geheim").env("MINIO_BUCKET", "b")
    };
    let endpoint = |case: &Case| case.config().settings.s3.map(|s3| String::from(s3.endpoint));
    assert_eq!(endpoint(&s3()).as_deref(), Some("http://minio:9000/"));
    assert_eq!(
        endpoint(&s3().env("MINIO_SECURE", "1")).as_deref(),
        Some("https://minio:9000/")
    );
    assert_eq!(
        endpoint(&s3().env("MINIO_ENDPOINT", "https://minio")).as_deref(),
        Some("https://minio/")
    );
    finds(
        &s3().env("MINIO_ENDPOINT", "https://m").env("MINIO_SECURE", "false"),
        &["contradicts MINIO_SECURE"],
    );
    finds(
        &s3().env("MINIO_SECURE", "yes"),
        &["MINIO_SECURE \"yes\": must be true or false"],
    );
    finds(
        &s3().env("MINIO_BUCKET", "").env("MINIO_ACCESS_KEY", ""),
        &["MINIO_ACCESS_KEY, MINIO_BUCKET missing"],
    );
    finds(
        &case().env("MINIO_SECURE", "true"),
        &["S3 is only half configured: MINIO_SECURE set, MINIO_ENDPOINT,"],
    );
    finds(&case().env("DBPASS", "geheim"), &["DBHOST, DBUSER, DBNAME missing"]);
    let db = || case().env("DBHOST", "db").env("DBUSER", "u").env("DBNAME", "n");
    assert_eq!(db().config().settings.database.map(|db| db.port), Some(5432));
    finds(&db().env("DBPORT", "0"), &["DBPORT: \"0\" is not a port"]);
    let tls = |case: &Case| case.config().settings.database.map(|db| db.tls).expect("a database");
    assert_eq!(tls(&db()).mode, TlsMode::Prefer);
    for mode in TlsMode::ALL {
        assert_eq!(tls(&db().env("PGSSLMODE", mode.name())).mode, mode);
    }
    let system = db().env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", "system");
    assert_eq!(tls(&system).root_certificates, None);
    finds(
        &db().env("PGSSLMODE", "allow"),
        &["PGSSLMODE \"allow\": must be one of disable, prefer, require, verify-ca, verify-full"],
    );
    finds(
        &db().env("PGSSLROOTCERT", "none.pem"),
        &["PGSSLROOTCERT \"none.pem\": cannot be read"],
    );
    let roots = case();
    roots.write("empty.pem", "");
    let empty = roots.folder.path().join("empty.pem").display().to_string();
    finds(&db().env("PGSSLROOTCERT", &empty), &["holds no certificate"]);
    let certified = rcgen::generate_simple_self_signed(["db".to_owned()]).expect("a certificate");
    roots.write("roots.pem", certified.cert.pem());
    let file = roots.folder.path().join("roots.pem");
    let required = db()
        .env("PGSSLMODE", "require")
        .env("PGSSLROOTCERT", &file.display().to_string());
    // As libpq has it: who names whom to trust wants that to be looked at.
    assert_eq!(tls(&required).mode, TlsMode::VerifyCa);
    assert_eq!(tls(&required).root_certificates, Some(file));
    // Other programs' variables, without a database of ours.
    assert!(case().env("PGSSLMODE", "allow").config().settings.database.is_none());
    finds(
        &case().env("REDIS_URL", "http://r"),
        &["error: REDIS_URL: must begin with redis://"],
    );
    finds(
        &case().env("ARTIFACTAPI_NODE_URL", "http://n"),
        &["ARTIFACTAPI_NODE_SECRET is not"],
    );
    finds(
        &case().env("ARTIFACTAPI_ADMIN_TOKEN", "a b"),
        &["ARTIFACTAPI_ADMIN_TOKEN is empty or holds"],
    );

    let case = case()
        .env("HTTP_PROXY", "upper:1")
        .env("http_proxy", "http://lower:2")
        .env("https_proxy", "");
    let case = case
        .env("HTTPS_PROXY", "http://u:geheim@upper:3")
        .env("NO_PROXY", "A.example, .b,,10.0.0.0/8");
    let outbound = case.config().settings.outbound;
    assert_eq!(outbound.http.map(|p| (p.host, p.port)), Some(("lower".into(), 2)));
    assert_eq!(outbound.https.map(|p| (p.host, p.port)), Some(("upper".into(), 3)));
    assert_eq!(outbound.no_proxy, ["a.example", ".b", "10.0.0.0/8"]);
    finds(
        &case.env("https_proxy", "socks5://u:geheim@h"),
        &["https_proxy \"socks5://***@h\": only http:// proxies"],
    );
}

#[test]
fn the_configuration_shown_holds_no_secret() {
    let case = generic("username: u\npassword: geheim\nheaders: {X-T: geheim}\nproxy: http://p:geheim@h:3128")
        .env("REDIS_URL", "redis://:geheim@r:6379/0?password=geheim")
        .env("HTTPS_PROXY", "http://geheim@h")
        .env("ARTIFACTAPI_ADMIN_TOKEN", "geheim")
        .env("DBHOST", "db")
        .env("DBUSER", "u")
        .env("DBNAME", "n")
        .env("DBPASS", "geheim");
    let config = case.config();
    let json = config.to_redacted_json();
    assert!(
        !json.to_string().contains("geheim") && !format!("{config:?}").contains("geheim"),
        "{json:#}"
    );
    let remote = &json["remotes"]["x"];
    assert_eq!(remote["password"], "***");
    assert_eq!(remote["headers"]["x-t"], "***");
    assert_eq!(remote["proxy"], "http://***@h:3128");
    assert_eq!(remote["base_url"], "https://example.com/");
    assert_eq!(remote["immutable_patterns"], serde_json::Value::Null);
    assert_eq!(remote["cache"]["mutable_ttl"], 3600);
    assert_eq!(json["settings"]["redis_url"], "redis://***@r:6379/0?***");
    assert_eq!(json["settings"]["cache"]["disk_min_free"], "5%");
    assert_eq!(json["generation"], 1);
    assert_eq!(
        one("base_url: https://h/@scope").config().to_redacted_json()["remotes"]["x"]["base_url"],
        "https://h/@scope/"
    );
}

#[test]
fn a_reload_reads_all_again_and_keeps_what_cannot_change() {
    let case = generic("").conf("upstream: {idle_timeout: 8}\ncache: {memory_bytes: 1GB}\nstop_timeout: 3s");
    let first = case.config();
    let again = |current: &Config, generation| reload(current, &case.flags, &Environment::default(), generation);
    case.write(
        "remotes.yaml",
        "remotes: {y: {base_url: https://y, hosts: [y.example]}}",
    );
    case.write(
        "conf.yaml",
        "upstream: {idle_timeout: 9}\ncache: {memory_bytes: 2GB}\nstop_timeout: 3s\nlisten: ['127.0.0.1:9']\n\
         clients: {head_timeout: 7, http2_streams: 9}\ntokens: [{name: t, hash: 'sha256:00', scopes: [read]}]",
    );
    assert!(again(&first, 2).config.is_none(), "a hash is 32 bytes");
    let conf = fs::read_to_string(case.flags.conf.as_ref().expect("a file")).expect("it is there");
    case.write("conf.yaml", conf.replace("sha256:00", &hashed("t")));
    let loaded = again(&first, 2);
    let kept: Vec<String> = loaded.problems.iter().map(|problem| problem.message.clone()).collect();
    assert_eq!(kept.len(), 3, "{kept:?}");
    for (kept, key) in kept.iter().zip(["`listen`", "`cache`", "`clients.http2_streams`"]) {
        assert!(kept.contains(key) && kept.contains("started again"), "{kept}");
    }
    let second = loaded.config.expect("it loads");
    assert_eq!((second.generation, second.remotes.len()), (2, 1));
    assert_eq!(second.hosts["y.example"].name, "y");
    assert_eq!(second.remotes["y"].timeouts.idle, Duration::from_secs(9));
    let settings = &second.settings;
    assert_eq!(settings.listen, first.settings.listen);
    assert_eq!(settings.cache.memory_bytes, 1_000_000_000);
    assert_eq!(
        (settings.clients.head_timeout, settings.clients.http2_streams),
        (Duration::from_secs(7), 100)
    );
    assert!(settings.tokens.find(b"t").is_some());
    case.write("remotes.yaml", "remotes: {y: {}}");
    let third = again(&second, 3);
    assert!(third.config.is_none() && third.problems.iter().any(|problem| problem.severity == Severity::Error));
}

#[test]
fn tokens_are_checked_with_place() {
    let hash = hashed("secret");
    let case = Case::new("remotes: {x: {base_url: 'https://x'}}").conf(&format!(
        "tokens:\n- {{name: a, hash: '{hash}', scopes: [read], remotes: [x, 'y*']}}\n- {{name: a, hash: '{0}', scopes: [read]}}\n\
         - {{name: b, hash: '{hash}', scopes: [write]}}\n- {{name: c, hash: secret, scopes: [all]}}\n- {{name: d}}\n\
         - {{name: e, hash: '{1}', scopes: [], expires: soon}}\n- {{name: f, hash: '{2}', scopes: [admin], expires: 2020-01-01}}\n",
        hashed("other"),
        hashed("e"),
        hashed("f"),
    ));
    finds(
        &case,
        &[
            "warning: the token \"a\" names \"y*\", which is no remote",
            "conf.yaml:3:3: error: a second token of the name \"a\"",
            "conf.yaml:4:3: error: the tokens \"a\" and \"b\" have one hash",
            "conf.yaml:5:19: error: `tokens.hash` is not `sha256:` and 64",
            "conf.yaml:5:36: error: `tokens.scopes` \"all\": must be one of read, write, admin",
            "conf.yaml:6:3: error: `tokens.hash` is missing",
            "conf.yaml:6:3: error: `tokens.scopes` is missing",
            "error: `tokens.scopes` names nothing",
            "error: `tokens.expires` \"soon\": is no date",
            "warning: this token has expired",
        ],
    );
    assert!(
        !case.problems().concat().contains("secret"),
        "it may be the token itself"
    );
}

#[test]
fn what_is_protected_needs_a_token_and_what_is_open_with_credentials_is_said() {
    let case = generic("protected: true");
    finds(&case, &["the remote \"x\" is `protected`, and no token is configured"]);
    finds(&case.env("ARTIFACTAPI_ADMIN_TOKEN", "t"), &[]);
    let warning = "anybody may read here what it answers";
    for (keys, warned) in [
        ("username: me\npassword: p", true),
        ("headers: {X-Api-Key: k}", true),
        ("headers: {User-Agent: special}", false),
        ("username: me\npassword: p\nprotected: false", false),
    ] {
        let expected = [warning];
        finds(&generic(keys), if warned { &expected } else { &[] });
    }
    let contradiction = Case::new("remotes: {}")
        .env("ARTIFACTAPI_ADMIN_TOKEN", "t")
        .env("ARTIFACTAPI_OPEN_WRITES", "true");
    finds(&contradiction, &["ARTIFACTAPI_OPEN_WRITES lets everybody write"]);
}

#[test]
fn certificates_are_read_when_the_configuration_is() {
    let made = |days: i64| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        parameters.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        let certificate = parameters.self_signed(&key).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    };
    let (good, expired) = (made(9), made(-1));
    let case = |cert: &str, key: &str| {
        let case = Case::new("remotes: {}").conf("tls: {cert: cert.pem, key: key.pem, listen: ['127.0.0.1:1']}");
        case.write("cert.pem", cert);
        case.write("key.pem", key);
        case
    };
    let fine = case(&good.0, &good.1).config().settings;
    assert_eq!(fine.listeners().1, ["127.0.0.1:1".parse().expect("an address")]);
    finds(
        &case(&expired.0, &expired.1),
        &["warning: the certificate in `tls.cert` expired at"],
    );
    finds(
        &case(&good.0, &expired.1),
        &["error: `tls.key` is not the key of the certificate in `tls.cert`"],
    );
    finds(&case("", &good.1), &["`tls.cert` \"cert.pem\": holds no certificate"]);
    finds(
        &case(&good.0, "nonsense"),
        &["`tls.key` \"key.pem\": holds no private key"],
    );
    finds(
        &Case::new("remotes: {}").conf("listen: ['127.0.0.1:1']\ntls: {}"),
        &["`tls` names no certificate"],
    );
    let both = case(&good.0, &good.1)
        .conf("listen: ['127.0.0.1:1']\ntls: {cert: cert.pem, key: key.pem, listen: ['127.0.0.1:1']}");
    finds(&both, &["127.0.0.1:1 is both in `listen` and in `tls.listen`"]);
    let remote = generic("tls: {ca: ca.pem, cert: cert.pem, key: key.pem}\nprotected: false");
    remote.write("ca.pem", &good.0);
    remote.write("cert.pem", &good.0);
    remote.write("key.pem", &good.1);
    let loaded = remote.remote("x");
    assert!(loaded.tls.identity.is_some());
    assert!(loaded.tls.roots.as_ref().is_some_and(|roots| !roots.is_empty()));
    let local = one("type: local\ntls: {ca: ca.pem}");
    local.write("ca.pem", &good.0);
    finds(&local, &["`tls` on a local remote"]);
}
