//! `GET /api/v1/quarantine/explain`: why an artifact is, or is not, served.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};
use pingora_error::Result;
use pingora_proxy::Session;
use serde_json::{Value, json};

use super::asked::shown;
use super::judged::{Judged, date, pattern};
use super::release::entry;
use super::{artifact, parameters};
use crate::api::Api;
use crate::api::access::{self, Need};
use crate::cache::{Object, now_ms};
use crate::config::Config;
use crate::formats::hold::{Free, Verdict, Why};
use crate::formats::release::ListedBy;
use crate::formats::{Asset, Class};
use crate::policy::{self, quarantine};
use crate::session::reply::{self, Problem};

/// How long an index may take that has to be fetched for it.
const LIMIT: Duration = Duration::from_secs(45);

impl Api {
    pub(super) async fn explain(&self, session: &mut Session, config: &Config, query: &str) -> Result<()> {
        let shows_addresses = access::permits(session, config, Need::ManageAll);
        let asset = parameters(query, ["remote", "path"])
            .and_then(|[remote, path]| artifact(config, remote.as_deref(), path.as_deref()));
        let asset = match asset {
            Ok(asset) => asset,
            Err(problem) => return reply::problem(session, None, problem).await,
        };
        if let Err(problem) = access::check(session, config, Need::Read(&asset.remote)) {
            return reply::problem(session, None, problem).await;
        }
        match tokio::time::timeout(LIMIT, self.explained(&asset, shows_addresses)).await {
            Ok(explained) => reply::json(session, 200, &explained).await,
            Err(_) => {
                let detail = "the index that dates it does not come from upstream in time; try again";
                let problem = Problem::new(504, detail).at(&asset.remote.name, &asset.path.encoded);
                reply::problem(session, None, problem.header(header::RETRY_AFTER, "5")).await
            }
        }
    }

    async fn explained(&self, asset: &Asset, shows_addresses: bool) -> Value {
        let stored = self.fills.store.open_object(&asset.key()).await;
        let mut said = json!({
            "remote": asset.remote.name,
            "path": shown(asset),
            "package": asset.package,
            "version": asset.version,
            "stored": stored.is_some(),
        });
        let policy = policy::classify(asset);
        said["class"] = match policy.map(|policy| policy.class) {
            Some(Class::Immutable) => json!("immutable"),
            Some(Class::Mutable) => json!("mutable"),
            None => Value::Null,
        };
        let without = match policy {
            None => Some(Judged {
                verdict: "refused",
                ..Judged::served("patterns", "no pattern of this remote allows the path")
            }),
            _ if !asset.remote.quarantine.is_on() => Some(Judged::served("off", "this remote holds nothing back")),
            _ if asset.is_index() => Some(Judged::served(
                "index",
                "an index is never held; it leaves out what is, where it tells dates",
            )),
            Some(policy) if policy.class == Class::Mutable => {
                Some(Judged::served("mutable", "what is mutable is never held"))
            }
            Some(_) => None,
        };
        if let Some(judged) = without {
            tell(&mut said, &judged);
            return said;
        }
        self.judged(asset, stored.as_ref(), &mut said, shows_addresses).await;
        said
    }

    /// Adds what the policy says of what it covers.
    async fn judged(&self, asset: &Asset, stored: Option<&Arc<Object>>, said: &mut Value, shows_addresses: bool) {
        let policy = &asset.remote.quarantine;
        let headers = stored.map(|object| &object.head.headers);
        let dates = self
            .fills
            .dates_of(asset, headers, stored.map(|object| &**object))
            .await;
        let verdict = self.fills.judge(asset, dates, now_ms());
        let mut judged = Judged::new(asset, &verdict);
        let is_undated = matches!(
            verdict,
            Verdict::Free(Free::UndatedAllowed) | Verdict::Held { why: Why::Undated, .. }
        );
        if is_undated && stored.is_none() {
            judged.verdict = "unknown";
            judged.reason = "unknown until it is asked for: upstream's `Last-Modified` may date it".to_owned();
        }
        tell(said, &judged);
        said["published"] = date(dates.published);
        said["published_by"] = match dates.published {
            Some(published) => json!(self.source(asset, published, headers, stored).await),
            None => Value::Null,
        };
        said["first_seen"] = date(dates.first_seen);
        said["period_days"] = json!(policy.days_of(asset.package.as_deref()));
        said["override"] = json!(pattern(policy, asset));
        said["freeze"] = date(policy.freeze);
        if let Verdict::Free(Free::Exempt(reason)) = &verdict {
            let exemption = policy.exemptions.iter().find(|exemption| exemption.reason == *reason);
            said["until"] = date(exemption.map(|exemption| exemption.until));
        }
        let of_remote = self.fills.let_through.of(&asset.remote.name);
        if let Some(artifact) = of_remote.latest(asset) {
            said["released"] = entry(&artifact, shows_addresses);
        }
    }

    /// Who says that `asset` was published at this moment.
    async fn source(
        &self,
        asset: &Asset,
        published: u64,
        headers: Option<&HeaderMap>,
        stored: Option<&Arc<Object>>,
    ) -> String {
        if let Some(by) = asset.dated_by() {
            for index in &by.indexes {
                let one = ListedBy {
                    indexes: vec![index.clone()],
                    ..by.clone()
                };
                let file = stored.map(|object| &**object);
                if self.fills.published_by(asset, &one, file).await == Some(published) {
                    return format!("index {index}");
                }
            }
        }
        match headers.and_then(quarantine::published) == Some(published) {
            true => "Last-Modified".to_owned(),
            false => "what was known before".to_owned(),
        }
    }
}

fn tell(said: &mut Value, judged: &Judged) {
    said["verdict"] = json!(judged.verdict);
    said["rule"] = json!(judged.rule);
    said["reason"] = json!(judged.reason);
    said["until"] = date(judged.until);
}
