//! The configuration as `GET /config` shows it: every effective value, no secret.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::model::{
    CacheSettings, Config, CredentialsWithin, LogTarget, MinFree, Password, ProxyUrl, Remote, RemoteType, Settings,
    Timeouts,
};
use super::own_keys::KnownKeys;
use super::pattern::PackagePattern;
use super::quarantine::{Clock, MissingDate, Mode, Quarantine};
use super::tokens::Token;
use super::values::{HIDDEN, mask, shown_host, shown_url};

impl Config {
    /// `{"remotes": {…}, "settings": {…}, "generation": n}` with `***` for each secret. A value that took something
    /// from the environment is shown as it was written, `${NAME}` included.
    pub fn to_redacted_json(&self) -> Value {
        let remotes: Map<String, Value> = self
            .remotes
            .iter()
            .map(|(name, remote)| (name.clone(), self.remote_json(remote)))
            .collect();
        let mut settings = settings_json(&self.settings);
        for package in self.packages.iter().filter(|package| package.default_remote.is_some()) {
            settings[package.name] = json!({"default_remote": self.settings.default_remotes.get(package.name)});
        }
        json!({
            "generation": self.generation,
            "remotes": remotes,
            "settings": settings,
        })
    }

    fn remote_json(&self, remote: &Remote) -> Value {
        let mut json = remote_json(remote);
        let own_keys = KnownKeys::of(&self.packages);
        for key in own_keys.iter() {
            json[key.name] = key.shown(&remote.own);
        }
        let always = ["base_url", "description", "username", "proxy"];
        for key in always.into_iter().chain(own_keys.urls()) {
            let source = self.interpolated.get(&(remote.name.clone(), key.to_owned()));
            if let (Some(source), Some(value)) = (source, json.get_mut(key)) {
                *value = json!(if key == "proxy" { mask(source) } else { source.clone() });
            }
        }
        json
    }
}

fn remote_json(remote: &Remote) -> Value {
    let patterns = |patterns: &[super::Pattern]| patterns.iter().map(|p| p.as_str().to_owned()).collect::<Vec<_>>();
    let names = |patterns: &[PackagePattern]| patterns.iter().map(|p| p.as_str().to_owned()).collect::<Vec<_>>();
    let headers: Map<String, Value> = remote
        .headers
        .iter()
        .map(|(name, _)| (name.as_str().to_owned(), json!(HIDDEN)))
        .collect();
    let command = match remote.credentials.as_ref().map(|credentials| &credentials.password) {
        Some(Password::Command(command)) => Some(command),
        _ => None,
    };
    let mut upstream = timeouts(&remote.timeouts);
    upstream["requests_per_second"] = json!(remote.caps.requests_per_second);
    upstream["bytes_per_second"] = json!(remote.caps.bytes_per_second);
    let mut shown = json!({
        "type": match remote.kind {
            RemoteType::Remote => "remote",
            RemoteType::Local => "local",
        },
        "package": remote.package.name,
        "description": remote.description,
        "base_url": remote.base_url.as_ref().map(shown_url),
        "username": remote.credentials.as_ref().map(|credentials| &credentials.username),
        "password": remote.credentials.as_ref().map(|_| HIDDEN),
        "headers": headers,
        "credentials_within": match remote.credentials_within {
            CredentialsWithin::Host => "host",
            CredentialsWithin::BaseUrl => "base_url",
        },
        "headers_keep": remote.headers_keep.iter().map(HeaderName::as_str).collect::<Vec<_>>(),
        "active_content": remote.active_content,
        "protected": remote.protected,
        "allow_packages": remote.allow_packages.as_deref().map(names),
        "deny_packages": names(&remote.deny_packages),
        "immutable_patterns": remote.immutable_patterns.as_deref().map(patterns),
        "mutable_patterns": patterns(&remote.mutable_patterns),
        "check_mutable_updates": remote.check_mutable_updates,
        "hosts": remote.hosts,
        "password_command": command.map(|command| vec![command.argv[0].as_str(), HIDDEN]),
        "password_command_ttl": command.map(|command| seconds(command.ttl)),
        "file_hosts": remote.file_hosts.iter().map(shown_host).collect::<Vec<_>>(),
        "proxy": remote.proxy.as_ref().map(proxy),
        "tls": {
            "ca": file(&remote.tls.ca),
            "cert": file(&remote.tls.cert),
            "key": file(&remote.tls.key),
        },
        "offline": remote.offline,
        "serve_stale_on": remote.serve_stale_on,
        "verify": remote.verify.name(),
        "client_revalidation": remote.client_revalidation,
        "refresh": if remote.refresh_ahead { "background" } else { "off" },
        "overwrite": remote.uploads.overwrite,
        "max_upload": remote.uploads.longest,
        "quota": remote.uploads.quota,
        "cache": {
            "immutable_ttl": seconds(remote.ttl.immutable),
            "mutable_ttl": seconds(remote.ttl.mutable),
            "negative_ttl": seconds(remote.ttl.negative),
        },
        "upstream": upstream,
    });
    if let Value::Object(shown) = &mut shown {
        shown.extend(quarantine(&remote.quarantine));
    }
    shown
}

fn quarantine(quarantine: &Quarantine) -> Map<String, Value> {
    let overrides = quarantine.overrides.iter();
    let overrides: Map<String, Value> = overrides
        .map(|(pattern, days)| (pattern.as_str().to_owned(), json!(days)))
        .collect();
    let exemptions = quarantine.exemptions.iter().map(|exemption| {
        json!({
            "package": exemption.package.as_str(),
            "versions": exemption.versions,
            "until": date(exemption.until),
            "reason": exemption.reason,
        })
    });
    let shown = json!({
        "quarantine_new": quarantine.days.is_some(),
        "quarantine_days": quarantine.days.unwrap_or(0),
        "quarantine_overrides": overrides,
        "quarantine_exemptions": exemptions.collect::<Vec<_>>(),
        "quarantine_missing_date": match quarantine.missing_date {
            MissingDate::Allow => "allow",
            MissingDate::Deny => "deny",
        },
        "quarantine_clock": match quarantine.clock {
            Clock::Published => "published",
            Clock::FirstSeen => "first_seen",
            Clock::Both => "both",
        },
        "quarantine_mode": match quarantine.mode {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        },
        "freeze": quarantine.freeze.map(date),
    });
    match shown {
        Value::Object(shown) => shown,
        _ => Map::new(),
    }
}

fn file(path: &Option<PathBuf>) -> Option<Cow<'_, str>> {
    path.as_ref().map(|path| path.to_string_lossy())
}

/// Unix seconds as RFC 3339 has them.
fn date(seconds: u64) -> String {
    let date = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    date.and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_default()
}

fn settings_json(settings: &Settings) -> Value {
    let mut upstream = timeouts(&settings.upstream.timeouts);
    upstream["max_concurrent"] = json!(settings.upstream.max_concurrent);
    upstream["max_per_remote"] = json!(settings.upstream.max_per_remote);
    let CacheSettings {
        disk_bytes,
        disk_min_free,
        memory_bytes,
        sync,
        scrub_rate,
    } = &settings.cache;
    let clients = &settings.clients;
    json!({
        "listen": settings.listen,
        "public_url": settings.public_url.as_ref().map(|u| shown_url(u).trim_end_matches('/').to_owned()),
        "data_dir": settings.data_dir.to_string_lossy(),
        "remotes": settings.remotes_file.to_string_lossy(),
        "trusted_proxies": settings.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "resolver": settings.resolver,
        "stop_timeout": seconds(settings.stop_timeout),
        "access_log": match &settings.access_log {
            LogTarget::Off => "off".into(),
            LogTarget::Stdout => "stdout".into(),
            LogTarget::File(path) => path.to_string_lossy(),
        },
        "tls": settings.tls.as_ref().map(|tls| json!({
            "listen": tls.listen,
            "cert": tls.cert.to_string_lossy(),
            "key": tls.key.to_string_lossy(),
        })),
        "cache": {
            "disk_bytes": disk_bytes,
            "disk_min_free": match disk_min_free {
                MinFree::Bytes(bytes) => json!(bytes),
                MinFree::Percent(percent) => json!(format!("{percent}%")),
            },
            "memory_bytes": memory_bytes,
            "sync": sync,
            "scrub_rate": scrub_rate,
        },
        "clients": {
            "connections": clients.connections,
            "connections_per_address": clients.connections_per_address,
            "head_timeout": seconds(clients.head_timeout),
            "head_bytes": clients.head_bytes,
            "idle_timeout": seconds(clients.idle_timeout),
            "body_timeout": seconds(clients.body_timeout),
            "body_rate": clients.body_rate,
            "write_timeout": seconds(clients.write_timeout),
            "http2_streams": clients.http2_streams,
            "http2_unread": clients.http2_unread,
        },
        "upstream": upstream,
        "outbound": {
            "http_proxy": settings.outbound.http.as_ref().map(proxy),
            "https_proxy": settings.outbound.https.as_ref().map(proxy),
            "no_proxy": settings.outbound.no_proxy,
        },
        "admin_token": settings.admin_token.as_ref().map(|_| HIDDEN),
        "open_writes": settings.open_writes,
        "tokens": settings.tokens.iter().map(token).collect::<Vec<_>>(),
        "database": settings.database.as_ref().map(|database| json!({
            "host": database.host,
            "port": database.port,
            "user": database.user,
            "password": database.password.as_ref().map(|_| HIDDEN),
            "name": database.name,
            "tls": {
                "mode": database.tls.mode.name(),
                "root_certificates": database.tls.root_certificates.as_ref().map(|file| file.to_string_lossy()),
            },
        })),
        "redis_url": settings.redis_url.as_ref().map(|secret| redis_url(secret.reveal())),
        "s3": settings.s3.as_ref().map(|s3| json!({
            "endpoint": shown_url(&s3.endpoint),
            "access_key": HIDDEN,
            "secret_key": HIDDEN,
            "bucket": s3.bucket,
            "region": s3.region,
        })),
        "node_url": settings.node_url.as_ref().map(|u| shown_url(u).trim_end_matches('/').to_owned()),
        "node_secret": settings.node_secret.as_ref().map(|_| HIDDEN),
    })
}

/// Not even the hash is shown: there is nothing to be done with it.
fn token(token: &Token) -> Value {
    json!({
        "name": token.name,
        "hash": HIDDEN,
        "scopes": token.scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>(),
        "remotes": token.remotes.as_ref().map(|patterns| patterns.iter().map(|p| p.text.as_str()).collect::<Vec<_>>()),
        "expires": token.expires.map(date),
    })
}

/// A query may hold a password as well.
fn redis_url(text: &str) -> String {
    let masked = mask(text);
    match masked.find(['?', '#']) {
        Some(end) => format!("{}{HIDDEN}", &masked[..=end]),
        None => masked,
    }
}

fn proxy(proxy: &ProxyUrl) -> String {
    // Not the user's name either: where only a token is needed, it stands in its place.
    let credentials = if proxy.credentials.is_some() { "***@" } else { "" };
    format!("http://{credentials}{}:{}", proxy.host, proxy.port)
}

fn timeouts(timeouts: &Timeouts) -> Value {
    json!({
        "connect_timeout": seconds(timeouts.connect),
        "first_byte_timeout": seconds(timeouts.first_byte),
        "idle_timeout": seconds(timeouts.idle),
        "least_rate": timeouts.least_rate,
        "rate_window": seconds(timeouts.rate_window),
        "transfer_timeout": seconds(timeouts.whole),
    })
}

/// A number that the configuration would read as the same duration.
fn seconds(duration: Duration) -> Value {
    match duration.subsec_nanos() {
        0 => json!(duration.as_secs()),
        _ => json!(duration.as_secs_f64()),
    }
}
