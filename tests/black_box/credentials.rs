//! Who learns which secret: the remote's credentials go to its own host only, a client's go nowhere.

use crate::common::client::Headers;
use crate::common::dns::Dns;
use crate::common::outbound::OutboundProxy;
use crate::common::upstream::Authority;
use crate::common::{Proxy, Reply, Upstream, run};
use std::net::Ipv4Addr;

const SECRETS: [&str; 3] = ["authorization", "x-token", "cookie"];

#[test]
fn the_remotes_credentials_and_headers_go_to_its_own_host_only() {
    run(async {
        let (up, storage) = (Upstream::start().await, Upstream::start().await);
        storage.reply("/blob", Reply::ok("blob"));
        up.reply("/x", Reply::ok("x"))
            .reply("/away", Reply::redirect(302, storage.url("/blob")));
        up.reply("/here", Reply::redirect(302, "/x"));
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {}\n  username: me\n  password: \"${{SECRET}}\"\n  \
                 headers: {{X-Token: t0ken, User-Agent: special/1}}\n",
                up.base()
            ))
            .env("SECRET", "pa$$:word")
            .start()
            .await;
        for path in ["x", "away", "here"] {
            proxy.fetch("files", path).await.ok();
        }
        proxy.head("files", "head").await;
        // `me:pa$$:word`
        for seen in up.log() {
            assert_eq!(
                seen.header("authorization"),
                Some("Basic bWU6cGEkJDp3b3Jk"),
                "{}",
                seen.path
            );
            assert_eq!(
                (seen.header("x-token"), seen.header("user-agent")),
                (Some("t0ken"), Some("special/1"))
            );
        }
        let away = storage.last("GET", "/blob");
        for name in SECRETS {
            assert_eq!(away.header(name), None, "{name} went to {}", away.host());
        }
        assert_ne!(away.header("user-agent"), Some("special/1"));
    });
}

#[test]
fn credentials_stay_below_the_base_url_where_that_is_asked_for() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/team/a/x", Reply::ok("x"))
            .reply("/team/a/away", Reply::redirect(302, "/team/b/y"))
            .reply("/team/a/up", Reply::redirect(302, "/team/a/..%2fb/y"))
            .reply("/team/a/near", Reply::redirect(302, "/team/a/x"));
        up.fallback(|_| Reply::ok("y"));
        let remote = |name: &str, within: &str| {
            format!(
                "{name}:\n  base_url: {}/team/a\n  username: me\n  password: secret\n  headers: {{X-Token: t0ken}}\n  {within}\n",
                up.base()
            )
        };
        let yaml = remote("all", "") + &remote("host", "credentials_within: host");
        let proxy = Proxy::start(&(yaml + &remote("narrow", "credentials_within: base_url"))).await;
        for name in ["all", "host", "narrow"] {
            let before = up.total();
            for path in ["x", "away", "up", "near"] {
                proxy.fetch(name, path).await.ok();
            }
            for seen in &up.log()[before..] {
                let expected = name != "narrow" || seen.path.starts_with("/team/a/") && !seen.path.contains("..");
                for secret in ["authorization", "x-token"] {
                    assert_eq!(
                        seen.header(secret).is_some(),
                        expected,
                        "{name}: {secret} at {}",
                        seen.path
                    );
                }
            }
        }
    });
}

#[test]
fn another_port_or_scheme_of_the_same_host_is_another_host() {
    run(async {
        let authority = Authority::new();
        let up = Upstream::start_tls_with(&authority, "localhost", &["http/1.1"]).await;
        let second = Upstream::start_tls_with(&authority, "localhost", &["h2"]).await;
        second.reply("/blob", Reply::ok("blob"));
        up.reply("/x", Reply::redirect(302, second.url("/blob")));
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {}\n  username: me\n  password: secret\n",
                up.base()
            ))
            .env("SSL_CERT_FILE", authority.path().to_str().unwrap())
            .start()
            .await;
        proxy.fetch("files", "x").await.is("remote", "blob");
        assert!(up.last("GET", "/x").header("authorization").is_some());
        assert_eq!(second.last("GET", "/blob").header("authorization"), None);
        assert_eq!(
            (up.last("GET", "/x").version, second.last("GET", "/blob").version),
            (1, 2)
        );
    });
}

#[test]
fn a_clients_credentials_never_go_upstream() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|seen| match seen.path.as_str() {
            "/teapot" => Reply::status(418),
            "/none" => Reply::status(404),
            _ => Reply::ok("0123456789"),
        });
        let yaml = format!(
            "files:\n  base_url: {0}\nnpm:\n  base_url: {0}\n  package: npm\n",
            up.base()
        );
        let proxy = Proxy::start(&yaml).await;
        let secrets = [
            ("Authorization", "Bearer secret"),
            ("Cookie", "secret=1"),
            ("Proxy-Authorization", "Basic secret"),
            ("X-Token", "secret"),
            ("npm-otp", "secret"),
        ];
        for (method, path, extra) in [
            ("GET", "/api/v1/remote/files/x", None),
            ("HEAD", "/api/v1/remote/files/y", None),
            ("GET", "/api/v1/remote/files/z", Some(("Range", "bytes=1-2"))),
            ("GET", "/api/v1/remote/files/teapot", None),
            ("GET", "/api/v1/remote/files/none", None),
            ("POST", "/api/v1/remote/npm/-/npm/v1/security/advisories/bulk", None),
        ] {
            let headers = secrets.iter().copied().chain(extra).collect::<Vec<_>>();
            let body: &[u8] = if method == "POST" { b"{}" } else { b"" };
            proxy.request(method, path, &headers, body).await;
        }
        assert!(up.total() >= 6, "{:?}", up.log());
        for seen in up.log() {
            assert!(
                seen.headers.iter().all(|(_, value)| !value.contains("secret")),
                "{seen:?}"
            );
        }
    });
}

#[test]
fn secrets_are_in_no_answer_and_no_log() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {}\n  username: someone\n  password: hunter2-secret\n  \
                 headers: {{X-Token: hunter2-token}}\n  proxy: \"http://u:hunter2-proxy@{}\"\n",
                up.base(),
                crate::common::refused()
            ))
            .env("ARTIFACTAPI_ADMIN_TOKEN", "hunter2-admin")
            .start()
            .await;
        let mut said = Vec::new();
        for path in ["/config", "/", "/metrics", "/health", "/api/v1/remote/files/x"] {
            let answer = proxy
                .request("GET", path, &[("Authorization", "Bearer hunter2-admin")], b"")
                .await;
            said.push(format!("{path}: {}", answer.text()));
        }
        assert!(said[0].contains("***"), "{}", said[0]);
        said.push(proxy.log());
        for text in said {
            assert!(!text.contains("hunter2"), "{text}");
        }
    });
}

#[test]
fn the_most_talkative_log_has_no_secret() {
    run(async {
        let up = Upstream::start().await;
        let signed = format!("{}/signed?X-Amz-Signature=hunter2-signed", up.base());
        up.on("/x", move |_| Reply::redirect(302, signed.clone()));
        up.under("/signed", |_| Reply::ok("x").header("Set-Cookie", "id=hunter2-set"));
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {}\n  username: someone\n  password: hunter2-secret\n  \
                 headers: {{X-Token: hunter2-token}}\n",
                up.base(),
            ))
            .env("ARTIFACTAPI_LOG", "trace")
            .start()
            .await;
        let secrets = [
            ("Authorization", "Bearer hunter2-bearer"),
            ("Cookie", "a=hunter2-cookie"),
        ];
        proxy.fetch_with("files", "x", &secrets).await.ok();
        let ranged = [secrets[0], secrets[1], ("Range", "bytes=0-0")];
        proxy.fetch_with("files", "y", &ranged).await;
        let malformed = "GET /x y HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer hunter2-malformed\r\n\r\n";
        for before in ["", "GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let mut connection = proxy.connect().await;
            connection.write_raw(format!("{before}{malformed}").as_bytes()).await;
            while connection.try_read_head("GET").await.is_ok() {
                connection.read_body().await;
            }
        }
        proxy.wait_for_log("following a redirect").await;
        assert!(!proxy.log().contains("hunter2"), "{}", proxy.log());
    });
}

#[test]
fn a_query_which_may_be_a_signature_is_neither_logged_nor_shown() {
    run(async {
        let up = Upstream::start().await;
        let signed = |path: &str| format!("{path}?X-Amz-Signature=hunter2");
        let body = crate::common::Pattern::new(1, 500_000);
        for path in ["/stored", "/pkg-2.0.tar.gz"] {
            up.reply(&signed(path), Reply::ok(body));
        }
        for path in ["/cut", "/pkg-1.0.tar.gz"] {
            up.reply(&signed(path), Reply::ok(body).truncate_at(400_000));
        }
        let links = ["pkg-1.0.tar.gz#", "pkg-2.0.tar.gz#sha256=00"].map(|link| {
            let (file, fragment) = link.split_once('#').unwrap();
            let fragment = fragment.replace("00", &"0".repeat(64));
            format!("<a href=\"/{}#{fragment}\">{file}</a>", signed(file))
        });
        up.reply("/simple/pkg/", Reply::ok(links.concat()).content_type("text/html"));
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {0}\npy:\n  base_url: {0}\n  package: pypi\n",
                up.base()
            ))
            .conf("cache: {memory_bytes: 1MB, scrub_rate: 0}\n")
            .env("ARTIFACTAPI_LOG", "trace")
            .start()
            .await;
        // A transfer that breaks off, and one that brings something else than the index says.
        for (remote, path) in [("files", "cut"), ("py", "pkg-1.0.tar.gz"), ("py", "pkg-2.0.tar.gz")] {
            let answer = proxy.fetch(remote, &signed(path)).await;
            assert!(!answer.complete || answer.status == 502, "{path}: {}", answer.status);
        }
        proxy.wait_for_log("a transfer from upstream failed").await;
        // A stored file that is damaged.
        proxy.fetch("files", &signed("stored")).await.ok();
        proxy.until_cached("files", &signed("stored")).await;
        for file in crate::common::server::stored_files(&proxy.data_dir()) {
            let file = std::fs::File::options().write(true).open(file).unwrap();
            file.set_len(file.metadata().unwrap().len().min(100_000)).unwrap();
        }
        proxy.fetch("files", &signed("stored")).await;
        proxy.wait_for_log("DAMAGED").await;
        let health = proxy.request("GET", "/health", &[], b"").await.ok().text();
        assert!(health.contains("files stored?"), "{health}");
        for said in [health, proxy.log()] {
            assert!(!said.contains("hunter2"), "{said}");
        }
    });
}

#[test]
fn no_configured_or_signed_secret_is_anywhere_for_people() {
    run(async {
        let up = Upstream::start().await;
        let signed = format!("{}/gone?X-Amz-Signature=hunter2-signed&sig=hunter2-sig", up.base());
        up.on("/away", move |_| Reply::redirect(302, signed.clone()));
        up.under("/gone", |_| Reply::hang_up());
        up.reply("/cut", Reply::ok("0123456789").truncate_at(4));
        up.reply("/loop", Reply::redirect(302, "/loop?token=hunter2-loop"));
        up.reply(
            "/bad",
            Reply::redirect(302, "ftp://u:hunter2-userinfo@h/x?token=hunter2-ftp"),
        );
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = Authority::new().issue(&["artifactapi"]);
        std::fs::write(folder.path().join("cert.pem"), certificate).unwrap();
        std::fs::write(folder.path().join("key.pem"), &key).unwrap();
        let path = folder.path().display();
        let hash = crate::common::sha256(b"hunter2-reader");
        for level in ["debug", "trace"] {
            let proxy = Proxy::settings()
                .remotes(&format!(
                    "files:\n  base_url: {0}\n  username: someone\n  password: hunter2-secret\n  protected: true\n  \
                     headers: {{X-Token: hunter2-token}}\n  tls: {{cert: {path}/cert.pem, key: {path}/key.pem}}\n\
                     through:\n  base_url: {0}\n  proxy: \"http://u:hunter2-proxy@{1}\"\n",
                    up.base(),
                    crate::common::refused()
                ))
                .conf(&format!(
                    "tokens: [{{name: reader, hash: 'sha256:{hash}', scopes: [read]}}]\n"
                ))
                .env("ARTIFACTAPI_ADMIN_TOKEN", "hunter2-admin")
                .env("ARTIFACTAPI_LOG", level)
                .start()
                .await;
            let mut said = Vec::new();
            for token in ["hunter2-admin", "hunter2-reader", "hunter2-unknown"] {
                let authorization = format!("Bearer {token}");
                for target in [
                    "/config",
                    "/",
                    "/metrics",
                    "/health",
                    "/api/v1/remote/files/away",
                    "/api/v1/remote/files/cut?token=hunter2-query&a=1",
                    "/api/v1/remote/files/loop",
                    "/api/v1/remote/files/bad",
                    "/api/v1/remote/through/x?X-Amz-Signature=hunter2-query",
                ] {
                    let headers = [("Authorization", authorization.as_str())];
                    let mut connection = proxy.connect().await;
                    connection.send("GET", target, &headers, b"").await;
                    let head = connection.try_read_head("GET").await.unwrap();
                    let body = String::from_utf8_lossy(&connection.read_body().await).into_owned();
                    said.push(format!("{:?} {body}", head.headers));
                }
            }
            // A configuration that is refused is told without what it holds.
            proxy.write_remotes(
                "bad:\n  base_url: https://u:hunter2-userinfo@h/x?token=hunter2-url\n  password: hunter2-alone\n",
            );
            proxy.reload();
            proxy.wait_for_log("the one before stays in force").await;
            let admin = [("Authorization", "Bearer hunter2-admin")];
            said.push(proxy.request("GET", "/health", &admin, b"").await.ok().text());
            proxy.wait_for_log("following a redirect").await;
            let log = proxy.log();
            assert!(
                log.contains("a transfer from upstream failed") || log.contains("upstream failed"),
                "{log}"
            );
            said.push(log);
            for text in said {
                assert!(!text.contains("hunter2"), "{text}");
                assert!(
                    !text.contains(&hash) && !text.contains(key.lines().nth(1).unwrap()),
                    "{text}"
                );
            }
        }
    });
}

#[test]
fn a_password_may_come_from_a_file() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("x"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "from-a-file\n").unwrap();
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  username: me\n  password_file: {}\n",
            up.base(),
            file.display()
        ))
        .await;
        proxy.fetch("files", "x").await.ok();
        // `me:from-a-file`
        assert_eq!(
            up.last("GET", "/x").header("authorization"),
            Some("Basic bWU6ZnJvbS1hLWZpbGU=")
        );
    });
}

// Outbound proxies

#[test]
fn an_outbound_proxy_of_one_remote_gets_absolute_form_and_its_credentials() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        let outbound = OutboundProxy::start().await;
        outbound
            .place("files.test:80", up.address())
            .wants("Basic dXNlcjpwYXNz");
        let proxy = Proxy::start(&format!(
            "through:\n  base_url: http://files.test/base\n  username: me\n  password: own\n  \
             proxy: \"http://user:pass@{}\"\ndirect:\n  base_url: {}\n",
            outbound.address(),
            up.base()
        ))
        .await;
        proxy.fetch("through", "x?q=1").await.is("remote", "/base/x?q=1");
        proxy.fetch("direct", "y").await.is("remote", "/y");
        let log = outbound.log();
        assert_eq!(log.len(), 1, "{log:?}");
        assert_eq!(
            (log[0].method.as_str(), log[0].target.as_str()),
            ("GET", "http://files.test/base/x?q=1")
        );
        let seen = up.last("GET", "/base/x?q=1");
        assert_eq!(seen.host(), "files.test");
        assert_eq!(seen.header("proxy-authorization"), None);
        assert_eq!(seen.header("authorization"), Some("Basic bWU6b3du"));
    });
}

#[test]
fn https_goes_through_a_tunnel_and_redirects_too() {
    run(async {
        let authority = Authority::new();
        let up = Upstream::start_tls_with(&authority, "files.test", &["h2", "http/1.1"]).await;
        let storage = Upstream::start().await;
        storage.reply("/blob", Reply::ok("blob"));
        up.reply("/x", Reply::ok("x"));
        let outbound = OutboundProxy::start().await;
        outbound
            .place("files.test:443", up.address())
            .wants("Basic dXNlcjpwYXNz");
        let proxy = Proxy::settings()
            .remotes("files:\n  base_url: https://files.test\n  username: me\n  password: own\n")
            .env("SSL_CERT_FILE", authority.path().to_str().unwrap())
            .env("HTTPS_PROXY", format!("http://user:pass@{}", outbound.address()))
            .start()
            .await;
        proxy.fetch("files", "x").await.is("remote", "x");
        let asked = outbound.log();
        assert_eq!(
            (asked[0].method.as_str(), asked[0].target.as_str()),
            ("CONNECT", "files.test:443")
        );
        // The tunnel's opening is in the clear: nothing of the request may be in it.
        assert!(
            asked.iter().all(|asked| asked.header("authorization").is_none()),
            "{asked:?}"
        );
        assert!(up.last("GET", "/x").header("authorization").is_some());
        assert_eq!(up.last("GET", "/x").header("proxy-authorization"), None);
    });
}

#[test]
fn no_proxy_names_what_is_reached_directly() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("x"));
        let outbound = OutboundProxy::start().await;
        let yaml = format!("files:\n  base_url: {}\n", up.base());
        for (no_proxy, through) in [("127.0.0.1", 0), ("127.0.0.0/8", 0), ("*", 0), ("example.test", 1)] {
            let before = outbound.log().len();
            let proxy = Proxy::settings()
                .remotes(&yaml)
                .env("HTTP_PROXY", outbound.url())
                .env("NO_PROXY", no_proxy)
                .start()
                .await;
            proxy.fetch("files", "x").await.is("remote", "x");
            assert_eq!(outbound.log().len() - before, through, "NO_PROXY={no_proxy}");
        }
    });
}

#[test]
fn a_refusing_outbound_proxy_is_an_unreachable_upstream() {
    run(async {
        let outbound = OutboundProxy::start().await;
        outbound.wants("Basic something-else");
        let proxy = Proxy::start(&format!(
            "tls:\n  base_url: https://files.test\n  proxy: {0}\ngone:\n  base_url: http://files.test\n  proxy: http://{1}\n",
            outbound.url(),
            crate::common::refused()
        ))
        .await;
        for remote in ["tls", "gone"] {
            let answer = proxy.fetch(remote, "x").await.expect(502);
            assert!(
                answer.json()["detail"].as_str().unwrap().contains("proxy"),
                "{}",
                answer.text()
            );
        }
    });
}

#[test]
fn a_407_of_upstreams_own_is_an_answer() {
    run(async {
        let authority = Authority::new();
        let plain = Upstream::start().await;
        let tunnelled = Upstream::start_tls_with(&authority, "files.test", &["http/1.1"]).await;
        let outbound = OutboundProxy::start().await;
        outbound.place("files.test:443", tunnelled.address());
        let keys = "mutable_patterns: ['x']\n  cache: {mutable_ttl: 0}";
        let proxy = Proxy::settings()
            .remotes(&format!(
                "plain:\n  base_url: {}\n  {keys}\ntunnelled:\n  base_url: https://files.test\n  proxy: {}\n  {keys}\n",
                plain.base(),
                outbound.url()
            ))
            .env("SSL_CERT_FILE", authority.path().to_str().unwrap())
            .start()
            .await;
        for (remote, up) in [("plain", &plain), ("tunnelled", &tunnelled)] {
            up.reply("/x", Reply::ok("stored"));
            proxy.fetch(remote, "x").await.is("remote", "stored");
            let refusal = Reply::status(407).header("Proxy-Authenticate", "Basic realm=\"theirs\"");
            up.reply("/x", refusal);
            // The stored copy is for an upstream that cannot be reached.
            let answer = proxy.fetch(remote, "x").await.expect(407);
            assert_eq!(answer.header("proxy-authenticate"), None, "{remote}");
        }
    });
}

// Names

#[test]
fn names_are_resolved_by_the_configured_resolver_and_cached() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|seen| Reply::ok(seen.path.clone()).close());
        let dns = Dns::start().await;
        dns.set("files.test", &[Ipv4Addr::LOCALHOST.into()]);
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: http://files.test:{}\n", up.port()))
            .conf(&format!("resolver: [\"{}\"]\n", dns.address()))
            .start()
            .await;
        for number in 0..5 {
            proxy
                .fetch("files", &number.to_string())
                .await
                .is("remote", format!("/{number}"));
        }
        // A and AAAA once each.
        assert!(
            (1..=2).contains(&dns.count("files.test")),
            "{} questions",
            dns.count("files.test")
        );
        assert_eq!(up.last("GET", "/0").host(), format!("files.test:{}", up.port()));
    });
}

#[test]
fn a_name_that_does_not_exist_or_is_not_answered_is_a_gateway_error() {
    run(async {
        let dns = Dns::start().await;
        let proxy = Proxy::settings()
            .remotes("files:\n  base_url: http://absent.test\n")
            .conf(&format!(
                "resolver: [\"{}\"]\nupstream: {{connect_timeout: 1s}}\n",
                dns.address()
            ))
            .start()
            .await;
        let answer = proxy.fetch("files", "x").await.expect(502);
        assert!(
            answer.json()["detail"].as_str().unwrap().contains("absent.test"),
            "{}",
            answer.text()
        );
        dns.silent(true);
        let answer = proxy.fetch("files", "y").await;
        assert!(matches!(answer.status, 502 | 504), "{}", answer.status);
    });
}

#[test]
fn a_public_name_that_resolves_to_link_local_is_refused() {
    run(async {
        let dns = Dns::start().await;
        // Of IPv6, so that nothing leaves this machine even where it is not refused.
        dns.set("evil.test", &["fe80::1".parse().unwrap()]);
        let proxy = Proxy::settings()
            .remotes("files:\n  base_url: http://evil.test\n")
            .conf(&format!("resolver: [\"{}\"]\n", dns.address()))
            .start()
            .await;
        let answer = proxy.fetch("files", "x").await.expect(502);
        assert!(
            answer.json()["detail"].as_str().unwrap().contains("link-local"),
            "{}",
            answer.text()
        );
    });
}

#[test]
fn every_address_of_a_name_is_tried() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("x"));
        let dns = Dns::start().await;
        dns.set(
            "files.test",
            &[Ipv4Addr::new(127, 0, 0, 77).into(), Ipv4Addr::LOCALHOST.into()],
        );
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: http://files.test:{}\n", up.port()))
            .conf(&format!("resolver: [\"{}\"]\n", dns.address()))
            .start()
            .await;
        proxy.fetch("files", "x").await.is("remote", "x");
    });
}

// TLS

#[test]
fn a_certificate_that_is_not_trusted_or_names_another_host_is_refused() {
    run(async {
        let authority = Authority::new();
        let untrusted = Upstream::start_tls().await;
        let wrong = Upstream::start_tls_with(&authority, "other.test", &["h2", "http/1.1"]).await;
        let proxy = Proxy::settings()
            .remotes(&format!(
                "untrusted:\n  base_url: {}\nwrong:\n  base_url: https://localhost:{}\n",
                untrusted.base(),
                wrong.port()
            ))
            .env("SSL_CERT_FILE", authority.path().to_str().unwrap())
            .start()
            .await;
        for remote in ["untrusted", "wrong"] {
            let answer = proxy.fetch(remote, "x").await.expect(502);
            let detail = answer.json()["detail"].as_str().unwrap().to_lowercase();
            assert!(detail.contains("certificate") || detail.contains("tls"), "{detail}");
        }
        assert_eq!(untrusted.total() + wrong.total(), 0);
    });
}

#[test]
fn both_versions_of_http_are_spoken_over_tls() {
    run(async {
        for (alpn, version) in [(&["h2", "http/1.1"][..], 2), (&["http/1.1"], 1), (&[], 1)] {
            let authority = Authority::new();
            let up = Upstream::start_tls_with(&authority, "localhost", alpn).await;
            let body = crate::common::Pattern::new(1, 2_000_000);
            up.file("/x", crate::common::File::new(body).etag("\"e\""));
            let proxy = Proxy::settings()
                .remotes(&format!("files:\n  base_url: {}\n", up.base()))
                .env("SSL_CERT_FILE", authority.path().to_str().unwrap())
                .start()
                .await;
            proxy.fetch("files", "x").await.is("remote", body.whole());
            proxy.until_cached("files", "x").await.is("cache", body.whole());
            let seen = up.last("GET", "/x");
            assert_eq!((seen.version, seen.host()), (version, up.authority().as_str()));
        }
    });
}
