//! Tokens and credentials of registries: what is asked, how often, of whom, and who learns what.

use std::sync::Arc;
use std::time::Duration;

use crate::common::client::Headers;
use crate::common::image::*;
use crate::common::outbound::OutboundProxy;
use crate::common::pull::*;
use crate::common::registry::*;
use crate::common::upstream::Authority;
use crate::common::{Proxy, Reply, Upstream, client, eventually, run, server};
use serde_json::json;
use tokio::task::JoinSet;

async fn guarded(tokens: &Tokens, image: &Manifest) -> Registry {
    let registry = Registry::start().await.guarded(tokens);
    registry.push("team/app", "v1", image);
    registry
}

fn image() -> Manifest {
    Manifest::image("app", "amd64", 2)
}

const CREDENTIALS: &str = "username: robot\npassword: 's3cr:et'";

#[test]
fn an_anonymous_token_is_asked_for_once_and_used_for_everything() {
    run(async {
        let (tokens, image) = (Tokens::start().await, image());
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        assert_eq!(tokens.scopes(), ["repository:team/app:pull"]);
        let asked = &tokens.asked()[0];
        assert_eq!(asked.method, "GET");
        assert_eq!(asked.header("authorization"), None);
        assert!(
            query(asked).contains(&("service".into(), "registry.test".into())),
            "{}",
            asked.path
        );
        // At most the first request came without the token.
        let bare = registry
            .up
            .log()
            .iter()
            .filter(|seen| seen.header("authorization").is_none())
            .count();
        assert!(bare <= 1, "{bare} requests without the token");
        assert!(!proxy.log_contains("token-1"), "the token is in the log");
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await.ok();
        assert_eq!(answer.header("www-authenticate"), None);
    });
}

#[test]
fn each_repository_has_a_token_of_its_own() {
    run(async {
        let (tokens, image) = (Tokens::start().await, image());
        let registry = guarded(&tokens, &image).await;
        registry.push("team/other", "v1", &image);
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        for _ in 0..2 {
            pull(&proxy, "hub/team/app", "v1", &image).await;
            pull(&proxy, "hub/team/other", "v1", &image).await;
        }
        let mut scopes = tokens.scopes();
        scopes.sort();
        assert_eq!(scopes, ["repository:team/app:pull", "repository:team/other:pull"]);
    });
}

#[test]
fn the_remotes_credentials_go_to_the_realm_and_never_to_the_registry() {
    run(async {
        let (tokens, image) = (Tokens::start().await.to("robot", "s3cr:et"), image());
        let registry = Registry::start().await.guarded(&tokens).redirecting().await;
        registry.push("team/app", "v1", &image);
        let proxy = Proxy::start(&registry.remote("hub", CREDENTIALS)).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        assert_eq!(tokens.count(), 1);
        assert_eq!(
            tokens.asked()[0].header("authorization"),
            Some(basic("robot", "s3cr:et").as_str())
        );
        for seen in registry.up.log() {
            let said = seen.header("authorization").unwrap_or("Bearer ");
            assert!(said.starts_with("Bearer "), "{} {}: {said}", seen.method, seen.path);
        }
        for seen in registry.storage().log() {
            assert_eq!(seen.header("authorization"), None, "{}", seen.path);
        }
    });
}

#[test]
fn a_registry_that_knows_basic_only_gets_the_remotes_credentials() {
    run(async {
        let image = image();
        let registry = Registry::start().await.basic("robot", "s3cr:et").redirecting().await;
        registry.push("team/app", "v1", &image);
        let yaml = registry.remote("hub", CREDENTIALS) + &registry.remote("anonymous", "");
        let proxy = Proxy::start(&yaml).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        assert!(registry.storage().total() > 0);
        for seen in registry.storage().log() {
            assert_eq!(seen.header("authorization"), None, "{}", seen.path);
        }
        let answer = get_manifest(&proxy, "anonymous/team/app", "v1").await;
        assert_eq!(answer.header("www-authenticate"), None);
        refused(answer, 403, "DENIED");
    });
}

#[test]
fn one_token_is_asked_for_however_many_pulls_wait() {
    run(async {
        let layers = (0..40).map(|number| Blob::new(format!("layer {number}"))).collect();
        let image = Manifest::of_blobs("many", layers);
        // Slow enough that all wait before the first is done.
        let tokens = Tokens::start().await.slow(Duration::from_millis(500));
        let registry = guarded(&tokens, &image).await;
        let proxy = Arc::new(Proxy::start(&registry.remote("hub", "")).await);
        let mut pulls = JoinSet::new();
        for blob in image.blobs.clone() {
            let proxy = proxy.clone();
            pulls.spawn(async move {
                let answer = get_blob(&proxy, "hub/team/app", &blob.digest).await.ok();
                assert!(answer.body == blob.bytes());
            });
        }
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
        while let Some(done) = pulls.join_next().await {
            done.unwrap();
        }
        assert_eq!(tokens.count(), 1, "{:?}", tokens.scopes());
    });
}

#[test]
fn a_refused_token_is_renewed_once() {
    run(async {
        let (tokens, image) = (Tokens::start().await, image());
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "cache: {mutable_ttl: 0}")).await;
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
        assert_eq!(tokens.count(), 1);
        tokens.revoke();
        let blob = &image.blobs[1];
        let answer = get_blob(&proxy, "hub/team/app", &blob.digest).await.ok();
        assert!(answer.body == blob.bytes());
        assert_eq!(tokens.count(), 2);
        // The tag's revalidation goes on with the new one.
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
        assert_eq!(tokens.count(), 2);
    });
}

#[test]
fn a_refusal_that_a_fresh_token_does_not_cure_is_denied_after_one_renewal() {
    run(async {
        let (tokens, image) = (Tokens::start().await, image());
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
        let path = blob_at("team/app", &image.blobs[1].digest);
        let realm = tokens.realm();
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:team/app:pull\"");
        registry.instead(&path, error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge));
        let answer = get_blob(&proxy, "hub/team/app", &image.blobs[1].digest).await;
        assert_eq!(answer.header("www-authenticate"), None);
        refused(answer, 403, "DENIED");
        assert!(tokens.count() <= 2, "{} tokens", tokens.count());
        assert!(
            registry.count("*", &path) <= 2,
            "{} requests",
            registry.count("*", &path)
        );
    });
}

#[test]
fn a_token_that_has_expired_is_replaced() {
    run(async {
        let tokens = Tokens::start()
            .await
            .saying(json!({"expires_in": 1}))
            .good_for(Duration::from_secs(1));
        let image = image();
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "cache: {mutable_ttl: 0}")).await;
        // Every request is answered, before and after the tokens end.
        eventually(Duration::from_secs(10), "a third token", async || {
            get_manifest(&proxy, "hub/team/app", "v1").await.ok();
            tokens.count() >= 3
        })
        .await;
    });
}

#[test]
fn a_token_without_a_time_is_kept_for_more_than_a_moment() {
    run(async {
        for extra in [
            json!({}),
            json!({"expires_in": 300}),
            json!({"expires_in": 300, "issued_at": "2024-01-02"}),
        ] {
            let (tokens, image) = (Tokens::start().await.saying(extra.clone()), image());
            let registry = guarded(&tokens, &image).await;
            let proxy = Proxy::start(&registry.remote("hub", "cache: {mutable_ttl: 0}")).await;
            for _ in 0..20 {
                get_manifest(&proxy, "hub/team/app", "v1").await.ok();
            }
            assert_eq!(tokens.count(), 1, "{extra}");
        }
    });
}

/// What stands in `WWW-Authenticate` of a 401 in place of the registry's own challenge.
fn saying_instead(registry: &Registry, path: &str, challenge: Option<String>) {
    registry.change(path, move |_, reply| match (reply.status, &challenge) {
        (401, Some(challenge)) => error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge),
        (401, None) => error(401, "UNAUTHORIZED"),
        _ => reply,
    });
}

#[test]
fn a_token_that_the_registry_has_forgotten_is_replaced_whatever_it_says() {
    run(async {
        let elsewhere = Upstream::start().await;
        elsewhere.fallback(|_| Reply::status(404));
        for challenge in [
            None,
            Some("Basic realm=\"balancer\"".to_owned()),
            Some("Negotiate".to_owned()),
            Some("Bearer".to_owned()),
            Some(format!("Bearer realm=\"{}\",service=\"s\"", elsewhere.url("/token"))),
        ] {
            let (tokens, image) = (Tokens::start().await.saying(json!({"expires_in": 3600})), image());
            let registry = guarded(&tokens, &image).await;
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            get_manifest(&proxy, "hub/team/app", "v1").await.ok();
            tokens.revoke();
            let blob = &image.blobs[1];
            let path = blob_at("team/app", &blob.digest);
            saying_instead(&registry, &path, challenge.clone());
            let answer = get_blob(&proxy, "hub/team/app", &blob.digest).await.ok();
            assert!(answer.body == blob.bytes(), "{challenge:?}");
            assert_eq!(tokens.count(), 2, "{challenge:?}");
            assert_eq!(registry.count("*", &path), 2, "{challenge:?}");
            // For the whole repository.
            let before = registry.up.total();
            get_blob(&proxy, "hub/team/app", &image.blobs[0].digest).await.ok();
            assert_eq!((tokens.count(), registry.up.total()), (2, before + 1), "{challenge:?}");
        }
        assert_eq!(elsewhere.total(), 0, "what worked last goes first");
    });
}

#[test]
fn a_service_that_the_registry_no_longer_believes_gives_way_to_the_new_one() {
    run(async {
        for old_one_is_there in [true, false] {
            let (old, new, image) = (Tokens::start().await, Tokens::start().await, many_layers(4));
            let registry = guarded(&old, &image).await;
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            get_blob(&proxy, "hub/team/app", &image.blobs[0].digest).await.ok();
            let registry = registry.guarded(&new);
            if !old_one_is_there {
                old.up.reply("/token", Reply::new(503, "gone"));
            }
            for blob in &image.blobs[1..3] {
                get_blob(&proxy, "hub/team/app", &blob.digest).await.ok();
            }
            assert_eq!((old.count(), new.count()), (2, 1));
            drop(registry);
        }
    });
}

#[test]
fn a_registry_that_wants_nothing_any_more_is_asked_without() {
    run(async {
        let (tokens, image) = (Tokens::start().await, many_layers(4));
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        get_blob(&proxy, "hub/team/app", &image.blobs[0].digest).await.ok();
        for blob in &image.blobs[1..3] {
            let bytes = blob.bytes();
            registry.change(&blob_at("team/app", &blob.digest), move |seen, _| {
                match seen.header("authorization") {
                    Some(_) => error(401, "UNAUTHORIZED"),
                    None => Reply::ok(bytes.clone()),
                }
            });
        }
        get_blob(&proxy, "hub/team/app", &image.blobs[1].digest).await.ok();
        assert_eq!(registry.count("*", &blob_at("team/app", &image.blobs[1].digest)), 3);
        // From then on at once.
        get_blob(&proxy, "hub/team/app", &image.blobs[2].digest).await.ok();
        assert_eq!(registry.count("*", &blob_at("team/app", &image.blobs[2].digest)), 1);
        assert_eq!(tokens.count(), 2);
    });
}

#[test]
fn configured_credentials_are_used_where_strangers_are_told_nothing() {
    run(async {
        let image = image();
        for (status, by_token) in [(403, true), (404, true), (429, true), (404, false)] {
            let tokens = Tokens::start().await.to("robot", "s3cr:et");
            let registry = match by_token {
                true => Registry::start().await.guarded(&tokens),
                false => Registry::start().await.basic("robot", "s3cr:et"),
            };
            registry.push("team/app", "v1", &image);
            let mut paths = vec![manifest_at("team/app", "v1")];
            for part in image.all() {
                paths.push(manifest_at("team/app", &part.digest));
                paths.extend(part.blobs.iter().map(|blob| blob_at("team/app", &blob.digest)));
            }
            for path in &paths {
                registry.change(path, move |seen, reply| match seen.header("authorization") {
                    None => error(status, "DENIED"),
                    Some(_) => reply,
                });
            }
            let yaml = registry.remote("hub", CREDENTIALS) + &registry.remote("stranger", "");
            let proxy = Proxy::start(&yaml).await;
            pull(&proxy, "hub/team/app", "v1", &image).await;
            for path in &paths {
                assert_eq!(registry.count("*", path), registry.authorized("*", path), "{path}");
            }
            assert_eq!(registry.count("*", "/v2/"), 1);
            // Who has no credentials is not helped by the question.
            get_manifest(&proxy, "stranger/team/app", "v1").await.expect(status);
            assert_eq!(registry.count("*", "/v2/"), 1);
        }
    });
}

#[test]
fn one_question_for_the_version_serves_all_repositories() {
    run(async {
        let (tokens, image) = (Tokens::start().await.to("robot", "s3cr:et"), image());
        let registry = Registry::start().await.guarded(&tokens);
        let names = (0..12).map(|number| format!("team/app{number}")).collect::<Vec<_>>();
        for name in &names {
            registry.push(name, "v1", &image);
        }
        let proxy = Arc::new(Proxy::start(&registry.remote("hub", CREDENTIALS)).await);
        let mut pulls = JoinSet::new();
        for name in names {
            let proxy = proxy.clone();
            pulls.spawn(async move { get_manifest(&proxy, &format!("hub/{name}"), "v1").await.status });
        }
        while let Some(status) = pulls.join_next().await {
            assert_eq!(status.unwrap(), 200);
        }
        assert_eq!((registry.count("*", "/v2/"), tokens.count()), (1, 12));
    });
}

#[test]
fn a_registry_that_does_not_say_what_it_wants_is_upstreams_trouble() {
    run(async {
        let (tokens, image) = (Tokens::start().await.to("robot", "s3cr:et"), image());
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", &format!("{CREDENTIALS}\ncache: {{mutable_ttl: 0}}"))).await;
        registry.instead("/v2/", Reply::new(503, "later"));
        // A stranger's question might be answered as if there were nothing.
        get_manifest(&proxy, "hub/team/app", "v1").await.expect(502);
        assert_eq!(registry.count("*", &manifest_at("team/app", "v1")), 0);
        registry.normal("/v2/");
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
    });
}

#[test]
fn a_bearer_challenge_without_a_realm_does_not_beat_basic() {
    run(async {
        let image = image();
        for challenge in [
            "Bearer scope=\"x\", Basic realm=\"registry\"",
            "Bearer realm=\"\", Basic realm=\"registry\"",
            "Bearer, Basic realm=\"registry\"",
        ] {
            let registry = Registry::start().await.basic("robot", "s3cr:et");
            registry.push("team/app", "v1", &image);
            let path = manifest_at("team/app", "v1");
            saying_instead(&registry, &path, Some(challenge.to_owned()));
            saying_instead(&registry, "/v2/", Some(challenge.to_owned()));
            let proxy = Proxy::start(&registry.remote("hub", CREDENTIALS)).await;
            get_manifest(&proxy, "hub/team/app", "v1").await.ok();
            assert_eq!(
                registry.authorized("*", &path),
                registry.count("*", &path),
                "{challenge}"
            );
        }
    });
}

#[test]
fn a_token_is_asked_for_what_the_request_needs_and_nothing_else() {
    run(async {
        for scope in [
            "repository:team/app:pull,push repository:other/private:pull registry:catalog:*",
            "repository:team/app:*",
            "repository:user/image:pull",
            "",
        ] {
            let (tokens, image) = (Tokens::start().await, image());
            let challenge = format!("realm=\"{}\",service=\"s\",scope=\"{scope}\"", tokens.realm());
            let registry = Registry::start().await.challenging(&tokens, &challenge);
            registry.push("team/app", "v1", &image);
            // Once by the whole name, once below a base URL that names a part of it.
            let below = format!("team:\n  base_url: {}/v2/team\n  package: docker\n", registry.up.base());
            let proxy = Proxy::start(&(registry.remote("hub", "") + &below)).await;
            pull(&proxy, "hub/team/app", "v1", &image).await;
            pull(&proxy, "team/app", "v1", &image).await;
            assert_eq!(tokens.scopes(), ["repository:team/app:pull"; 2], "{scope}");
        }
    });
}

#[test]
fn a_realm_outside_of_the_base_url_is_told_no_credentials_where_they_stay_below_it() {
    run(async {
        for (within, keys) in [
            ("host", String::new()),
            ("base_url", String::new()),
            ("base_url", "token_realms: ['{base}']".to_owned()),
        ] {
            let image = image();
            let registry = Registry::start().await;
            // The registry is its own token service, below another path.
            registry.up.on("/service/token", |_| Reply::ok("{\"token\": \"t\"}"));
            registry.push("team/app", "v1", &image);
            let realm = registry.up.url("/service/token");
            registry.change(&manifest_at("team/app", "v1"), move |seen, reply| {
                match seen.header("authorization") {
                    Some("Bearer t") => reply,
                    _ => error(401, "UNAUTHORIZED").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")),
                }
            });
            let base = registry.up.base();
            let proxy = Proxy::start(&format!(
                "team:\n  base_url: {base}/v2/team\n  package: docker\n  username: robot\n  password: secret\n  \
                 credentials_within: {within}\n  {}\n",
                keys.replace("{base}", &base)
            ))
            .await;
            get_manifest(&proxy, "team/app", "v1").await.ok();
            let asked = registry.up.log();
            let asked = asked
                .iter()
                .find(|seen| seen.path.starts_with("/service/token?"))
                .expect("a token");
            let expected = within == "host" || !keys.is_empty();
            assert_eq!(asked.header("authorization").is_some(), expected, "{within} {keys}");
        }
    });
}

/// An image of so many small layers: each can be asked for once, so that the registry has to answer.
fn many_layers(count: usize) -> Manifest {
    let layers = (0..count).map(|number| Blob::new(format!("layer {number}"))).collect();
    Manifest::of_blobs("many", layers)
}

#[test]
fn a_challenge_that_was_a_mistake_is_forgotten() {
    run(async {
        let image = image();
        let registry = Registry::with("team/app", "v1", &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        // As a balancer answers before the registry is up.
        let path = manifest_at("team/app", "v1");
        let challenge = "Basic realm=\"balancer\"";
        registry.instead(&path, error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge));
        refused(get_manifest(&proxy, "hub/team/app", "v1").await, 403, "DENIED");
        registry.normal(&path);
        pull(&proxy, "hub/team/app", "v1", &image).await;
    });
}

#[test]
fn a_token_service_that_moved_is_found_again() {
    run(async {
        let image = many_layers(60);
        let short = || async {
            let tokens = Tokens::start().await.saying(json!({"expires_in": 1}));
            tokens.good_for(Duration::from_secs(1))
        };
        let (old, new) = (short().await, short().await);
        let registry = guarded(&old, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        let mut layers = image.blobs.iter();
        let mut ask = async || {
            let digest = &layers.next().expect("a layer that is not here yet").digest;
            get_blob(&proxy, "hub/team/app", digest).await
        };
        ask().await.ok();
        old.up.reply("/token", Reply::new(500, "moved"));
        let registry = registry.guarded(&new);
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let mut failures = 0;
        while ask().await.status != 200 {
            failures += 1;
            assert!(failures < 3, "it is not found");
        }
        assert_eq!(new.count(), 1);
        drop(registry);
    });
}

#[test]
fn those_who_waited_for_a_token_in_vain_do_not_ask_again() {
    run(async {
        let image = many_layers(30);
        let tokens = Tokens::start().await.saying(json!({"expires_in": 1}));
        let registry = guarded(&tokens, &image).await;
        let proxy = Arc::new(Proxy::start(&registry.remote("hub", "")).await);
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let trouble = Reply::new(500, "oops").delay(Duration::from_millis(1500));
        tokens.up.reply("/token", trouble);
        let before = registry.up.total();
        let mut pulls = JoinSet::new();
        for blob in image.blobs[1..].iter().cloned() {
            let proxy = proxy.clone();
            pulls.spawn(async move { get_blob(&proxy, "hub/team/app", &blob.digest).await.status });
        }
        while let Some(status) = pulls.join_next().await {
            assert_eq!(status.unwrap(), 502);
        }
        assert_eq!(tokens.count(), 2, "{:?}", tokens.scopes());
        assert_eq!(registry.up.total(), before, "they went on without a token");
    });
}

#[test]
fn a_token_is_used_to_its_end_when_it_cannot_be_renewed_early() {
    run(async {
        let image = many_layers(400);
        let life = Duration::from_secs(9);
        let tokens = Tokens::start().await.saying(json!({"expires_in": 9})).good_for(life);
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
        tokens.up.reply("/token", Reply::new(503, "later"));
        tokio::time::sleep(life * 2 / 3).await;
        let mut layers = image.blobs.iter();
        let mut ask = async || {
            let digest = &layers.next().expect("a layer that is not here yet").digest;
            get_blob(&proxy, "hub/team/app", digest).await
        };
        while tokens.count() < 2 {
            ask().await.ok();
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        // Nor is the service asked again while there is no need.
        ask().await.ok();
        ask().await.ok();
        assert_eq!(tokens.count(), 2);
        tokio::time::sleep(life / 3).await;
        ask().await.expect(502);
        // Once it is back, so are the images.
        let back = tokens.slow(Duration::ZERO);
        ask().await.ok();
        assert!(back.count() >= 4);
    });
}

#[test]
fn signed_urls_are_not_logged() {
    run(async {
        let (tokens, image) = (Tokens::start().await, image());
        let registry = Registry::start().await.guarded(&tokens).redirecting().await;
        registry.push("team/app", "v1", &image);
        let proxy = Proxy::settings()
            .remotes(&registry.remote("hub", ""))
            .env("ARTIFACTAPI_LOG", "artifactapi=debug")
            .start()
            .await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        proxy.wait_for_log("following a redirect").await;
        assert!(proxy.log_contains("/bucket/"), "{}", proxy.log());
        assert!(!proxy.log_contains("X-Signature"), "{}", proxy.log());
    });
}

#[test]
fn challenges_and_answers_are_read_in_every_form() {
    run(async {
        for (number, (challenge, name)) in [
            ("scope=\"{scope}\",service=\"registry.test\",realm=\"{realm}\"", "token"),
            (
                "realm=\"{realm}\", service=registry.test, scope=\"{scope}\"",
                "access_token",
            ),
            (
                "realm=\"{realm}?a=1&b=2\",scope=\"{scope}\",error=\"invalid, \\\"token\\\"\"",
                "token",
            ),
            (
                "Realm=\"{realm}\" , SERVICE=\"registry.test\" , Scope=\"{scope}\"",
                "access_token",
            ),
            ("realm=\"{realm}\",service=\"a b&c=d\",scope=\"{scope}\"", "token"),
        ]
        .into_iter()
        .enumerate()
        {
            let (tokens, image) = (Tokens::start().await.named(name), image());
            let challenge = challenge.replace("{realm}", &tokens.realm());
            let registry = Registry::start().await.challenging(&tokens, &challenge);
            registry.push("team/app", "v1", &image);
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            pull(&proxy, "hub/team/app", "v1", &image).await;
            let asked = &tokens.asked()[0];
            assert_eq!(tokens.scopes(), ["repository:team/app:pull"], "{challenge}");
            if number == 2 {
                let sent = query(asked);
                assert!(
                    sent.contains(&("b".into(), "2".into())),
                    "the realm's own query is lost: {sent:?}"
                );
            }
            if number == 4 {
                assert!(
                    query(asked).contains(&("service".into(), "a b&c=d".into())),
                    "{}",
                    asked.path
                );
            }
        }
    });
}

#[test]
fn trouble_with_the_token_service_is_upstreams_trouble() {
    run(async {
        let image = image();
        let troubles = [
            ("error", Reply::new(500, "oops")),
            ("unavailable", Reply::new(503, "later").header("Retry-After", "3")),
            ("garbage", Reply::ok("<html>login</html>")),
            ("no token", Reply::ok("{\"token\": \"\"}")),
            ("reset", Reply::reset()),
            ("silence", Reply::silence()),
            ("loop", Reply::redirect(302, "/token")),
        ];
        for (what, reply) in troubles {
            println!("{what}");
            let tokens = Tokens::start().await;
            tokens.up.reply("/token", reply);
            let registry = guarded(&tokens, &image).await;
            let proxy = Proxy::settings()
                .remotes(&registry.remote("hub", ""))
                .conf("upstream: {connect_timeout: 1s, first_byte_timeout: 500ms}\n")
                .start()
                .await;
            for target in [
                manifest_at("hub/team/app", "v1"),
                blob_at("hub/team/app", &image.blobs[1].digest),
            ] {
                let answer = client::get(proxy.address(), &target).await;
                assert!(matches!(answer.status, 502..=504), "{what}: {}", answer.status);
                assert!(
                    answer.json()["errors"][0]["message"].is_string(),
                    "{what}: {}",
                    answer.text()
                );
                assert_eq!(answer.header("www-authenticate"), None);
            }
        }
    });
}

#[test]
fn refused_credentials_are_denied_not_unknown() {
    run(async {
        let (tokens, image) = (Tokens::start().await.to("robot", "right"), image());
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "username: robot\npassword: n0t-the-one")).await;
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        assert_eq!(answer.header("www-authenticate"), None);
        assert!(!answer.text().contains("n0t-the-one"), "the password is in the answer");
        refused(answer, 403, "DENIED");
    });
}

#[test]
fn credentials_go_to_a_realm_on_another_host_only_when_it_is_listed() {
    run(async {
        for expected in [false, true] {
            // `127.0.0.1` and `localhost` are two hosts.
            let (tokens, image) = (Tokens::start().await, image());
            let base = format!("http://localhost:{}", tokens.up.port());
            let (realm, keys) = (format!("{base}/token"), format!("token_realms: ['{base}']"));
            let keys = if expected { keys.as_str() } else { "" };
            let challenge = format!("realm=\"{realm}\",service=\"s\",scope=\"{{scope}}\"");
            let registry = Registry::start().await.challenging(&tokens, &challenge);
            registry.push("team/app", "v1", &image);
            let keys = format!("{CREDENTIALS}\n{keys}");
            let proxy = Proxy::start(&registry.remote("hub", &keys)).await;
            get_manifest(&proxy, "hub/team/app", "v1").await;
            let asked = tokens.asked();
            assert!(!asked.is_empty() || !expected, "nobody asked for a token");
            for seen in asked {
                assert_eq!(seen.header("authorization").is_some(), expected, "{keys}");
            }
            for seen in registry.up.log() {
                let said = seen.header("authorization").unwrap_or_default();
                assert!(!said.starts_with("Basic"), "{said}");
            }
        }
    });
}

#[test]
fn credentials_go_to_a_realm_of_the_same_domain_over_https_only() {
    run(async {
        for (realm, expected) in [
            ("https://auth.registry.test", true),
            ("https://auth.elsewhere.test", false),
            ("https://registry.test.elsewhere.test", false),
            ("http://auth.registry.test", false),
        ] {
            let (authority, image) = (Authority::new(), image());
            let host = realm.split_once("://").unwrap().1;
            let service = if realm.starts_with("https") {
                Upstream::start_tls_with(&authority, host, &["http/1.1"]).await
            } else {
                Upstream::start().await
            };
            let tokens = Tokens::on(service);
            let up = Upstream::start_tls_with(&authority, "hub.registry.test", &["http/1.1"]).await;
            let challenge = format!("realm=\"{realm}/token\",service=\"s\",scope=\"{{scope}}\"");
            let registry = Registry::on(up).challenging(&tokens, &challenge);
            registry.push("team/app", "v1", &image);
            let outbound = OutboundProxy::start().await;
            outbound
                .place("hub.registry.test:443", registry.up.address())
                .place(&format!("{host}:443"), tokens.up.address())
                .place(&format!("{host}:80"), tokens.up.address());
            let proxy = Proxy::settings()
                .remotes(&format!(
                    "hub:\n  base_url: https://hub.registry.test\n  package: docker\n  username: robot\n  \
                     password: 's3cr:et'\n  proxy: {}\n",
                    outbound.url()
                ))
                .env("SSL_CERT_FILE", authority.path().to_str().unwrap())
                .start()
                .await;
            let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
            if expected {
                assert!(answer.ok().body == image.bytes);
                assert_eq!(tokens.count(), 1);
            }
            for seen in tokens.up.log() {
                assert_eq!(seen.header("authorization").is_some(), expected, "{realm}");
            }
            let clear = outbound.log();
            assert!(
                clear.iter().all(|asked| asked.header("authorization").is_none()),
                "{realm}: {clear:?}"
            );
        }
    });
}

#[test]
fn a_realm_that_would_never_see_the_credentials_is_a_mistake() {
    let check = |realm: &str| {
        server::check(&format!(
            "remotes:\n  hub:\n    base_url: https://registry.test\n    package: docker\n    token_realms: ['{realm}']\n"
        ))
    };
    for realm in ["http://auth.registry.test", "http://10.0.0.1:5001", "http://[fd00::1]"] {
        let ended = check(realm);
        assert_eq!(ended.code, Some(1), "{realm}: {}", ended.text());
        assert!(ended.text().contains("over https only"), "{realm}: {}", ended.text());
        assert!(ended.text().contains("hint: write "), "{realm}: {}", ended.text());
    }
    for realm in [
        "auth.registry.test",
        "https://10.0.0.1",
        "http://localhost:5001",
        "http://127.0.0.2:5001",
        "http://[::1]",
    ] {
        let ended = check(realm);
        assert_eq!(ended.code, Some(0), "{realm}: {}", ended.text());
    }
}

#[test]
fn a_redirect_of_the_realm_does_not_take_the_credentials_along() {
    run(async {
        let (tokens, image, other) = (Tokens::start().await, image(), Upstream::start().await);
        let place = format!("http://localhost:{}/token", other.port());
        tokens.up.reply("/token", Reply::redirect(307, place));
        other.reply("/token", Reply::ok("{\"token\": \"stolen\"}"));
        let registry = guarded(&tokens, &image).await;
        let proxy = Proxy::start(&registry.remote("hub", CREDENTIALS)).await;
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        assert_ne!(answer.status, 401);
        assert!(tokens.count() >= 1);
        for seen in other.log() {
            assert_eq!(seen.header("authorization"), None);
        }
    });
}

#[test]
fn a_realm_at_a_link_local_address_is_not_asked() {
    run(async {
        let (tokens, image) = (Tokens::start().await, image());
        for realm in [
            "http://169.254.169.254/latest",
            "http://[fe80::1]/token",
            "file:///etc/passwd",
            "nonsense",
        ] {
            let challenge = format!("realm=\"{realm}\",service=\"s\",scope=\"{{scope}}\"");
            let registry = Registry::start().await.challenging(&tokens, &challenge);
            registry.push("team/app", "v1", &image);
            let proxy = Proxy::start(&registry.remote("hub", CREDENTIALS)).await;
            let started = std::time::Instant::now();
            let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
            assert!(matches!(answer.status, 502 | 403), "{realm}: {}", answer.text());
            // It was refused, and not tried until a time-out.
            assert!(
                started.elapsed() < Duration::from_secs(4),
                "{realm}: {:?}",
                started.elapsed()
            );
        }
    });
}

#[test]
fn a_clients_credentials_go_nowhere() {
    run(async {
        let (tokens, image) = (Tokens::start().await, image());
        let registry = Registry::start().await.guarded(&tokens).redirecting().await;
        registry.push("team/app", "v1", &image);
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        let targets = [
            ("GET", manifest_at("hub/team/app", "v1")),
            ("HEAD", manifest_at("hub/team/app", "v1")),
            ("GET", manifest_at("hub/team/app", &image.digest)),
            ("GET", blob_at("hub/team/app", &image.blobs[1].digest)),
            ("HEAD", blob_at("hub/team/app", &image.blobs[2].digest)),
            ("GET", "/v2/hub/team/app/tags/list".to_owned()),
            ("GET", "/v2/".to_owned()),
        ];
        for said in ["Basic c2VjcmV0OnNlY3JldA==", "Bearer c2VjcmV0OnNlY3JldA=="] {
            for (method, target) in &targets {
                let headers = [
                    ("Authorization", said),
                    ("Cookie", "c2VjcmV0OnNlY3JldA=="),
                    ("X-Registry-Auth", "c2VjcmV0OnNlY3JldA=="),
                ];
                proxy.request(method, target, &headers, b"").await.ok();
            }
        }
        for log in [registry.up.log(), tokens.up.log(), registry.storage().log()] {
            assert!(!log.is_empty());
            for seen in log {
                let told = seen.headers.iter().any(|(_, value)| value.contains("c2VjcmV0"));
                assert!(!told, "{seen:?}");
            }
        }
    });
}

// Passwords that renew themselves

#[test]
fn a_password_may_be_what_a_program_says_and_is_asked_for_again() {
    run(async {
        let image = image();
        let registry = Registry::start().await.basic("AWS", "pass-0ne");
        registry.push("team/app", "v1", &image);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "pass-0ne\n").unwrap();
        let keys = format!(
            "username: AWS\npassword_command: [/bin/cat, '{}']\npassword_command_ttl: 1s\ncache: {{mutable_ttl: 0}}",
            file.display()
        );
        let proxy = Proxy::start(&registry.remote("hub", &keys)).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        // As such registries do: the old one ends, the program says another.
        std::fs::write(&file, "pass-tw0\n").unwrap();
        let registry = registry.basic("AWS", "pass-tw0");
        let before = registry.up.total();
        eventually(Duration::from_secs(10), "the new password is used", async || {
            let answer = head_manifest(&proxy, "hub/team/app", "v1").await;
            assert!(matches!(answer.status, 200 | 403), "{}", answer.status);
            let second = basic("AWS", "pass-tw0");
            let log = registry.up.log();
            log[before..]
                .iter()
                .any(|seen| seen.header("authorization") == Some(&second))
        })
        .await;
        head_manifest(&proxy, "hub/team/app", "v1").await.ok();
        let config = client::get(proxy.address(), "/config").await.ok().text();
        for secret in ["pass-0ne", "pass-tw0"] {
            assert!(!config.contains(secret) && !proxy.log_contains(secret));
        }
    });
}

#[test]
fn a_program_that_says_no_password_is_trouble_and_not_a_refusal() {
    run(async {
        let image = image();
        for program in ["[/bin/false]", "[/bin/true]", "[/nonexistent/program]"] {
            let registry = Registry::start().await.basic("AWS", "pass-0ne");
            registry.push("team/app", "v1", &image);
            let keys = format!("username: AWS\npassword_command: {program}");
            let proxy = Proxy::start(&registry.remote("hub", &keys)).await;
            let answer = get_manifest(&proxy, "hub/team/app", "v1").await.expect(502);
            let message = answer.json()["errors"][0]["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            assert!(message.contains("password_command"), "{program}: {message}");
        }
    });
}

/// A program that says this password, and its runs are the lines of the file.
fn counted(runs: &std::path::Path, password: &str) -> String {
    let runs = runs.display();
    format!("username: AWS\npassword_command: [/bin/sh, -c, 'echo run >> {runs}; echo {password}']\n")
}

fn runs(file: &std::path::Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[test]
fn a_program_is_run_again_in_time_for_a_registry_that_hides_the_end_of_a_password() {
    run(async {
        let image = image();
        let registry = Registry::start().await.basic("AWS", "pass-0ne");
        registry.push("team/app", "v1", &image);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "pass-0ne\n").unwrap();
        let keys = format!(
            "username: AWS\npassword_command: [/bin/cat, '{}']\npassword_command_ttl: 1s\ncache: {{mutable_ttl: 0}}",
            file.display()
        );
        let proxy = Proxy::start(&registry.remote("hub", &keys)).await;
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
        // Such a registry answers what is no challenge.
        let second = basic("AWS", "pass-tw0");
        let registry = registry.basic("AWS", "pass-tw0");
        registry.change(&manifest_at("team/app", "v1"), move |seen, reply| {
            match seen.header("authorization") {
                Some(said) if said != second => error(403, "DENIED"),
                _ => reply,
            }
        });
        std::fs::write(&file, "pass-tw0\n").unwrap();
        eventually(Duration::from_secs(10), "the new password is used", async || {
            head_manifest(&proxy, "hub/team/app", "v1").await.status == 200
        })
        .await;
    });
}

#[test]
fn a_password_serves_all_repositories_until_its_time_is_over() {
    run(async {
        let image = image();
        let registry = Registry::start().await.basic("AWS", "pass-0ne");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("runs");
        let proxy = Proxy::start(&registry.remote("hub", &counted(&file, "pass-0ne"))).await;
        for repository in ["team/one", "team/two", "team/three"] {
            registry.push(repository, "v1", &image);
            get_manifest(&proxy, &format!("hub/{repository}"), "v1").await.ok();
        }
        // What is refused all the same has been said a moment ago.
        let path = manifest_at("team/one", "v2");
        let challenge = "Basic realm=\"registry\"";
        registry.instead(&path, error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge));
        refused(get_manifest(&proxy, "hub/team/one", "v2").await, 403, "DENIED");
        assert_eq!(runs(&file), 1);
    });
}

#[test]
fn a_program_is_not_run_for_a_service_that_may_not_see_its_password() {
    run(async {
        let (tokens, image) = (Tokens::start().await.to("AWS", "pass-0ne"), image());
        let realm = format!("http://localhost:{}/token", tokens.up.port());
        let challenge = format!("realm=\"{realm}\",service=\"s\",scope=\"{{scope}}\"");
        let registry = Registry::start().await.challenging(&tokens, &challenge);
        registry.push("team/app", "v1", &image);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("runs");
        let proxy = Proxy::start(&registry.remote("hub", &counted(&file, "pass-0ne"))).await;
        refused(get_manifest(&proxy, "hub/team/app", "v1").await, 403, "DENIED");
        assert_eq!(tokens.count(), 1);
        assert_eq!(runs(&file), 0);
    });
}
