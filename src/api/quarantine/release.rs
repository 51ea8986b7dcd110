//! `/api/v1/quarantine/release`: one artifact is let through though it is held, for a reason that is kept.

use http::{Method, header};
use pingora_error::Result;
use pingora_proxy::Session;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{LONGEST_NAME, artifact, parameters};
use crate::api::access::{self, Need};
use crate::api::{Api, away};
use crate::catalog::{LetThrough, MOST_LET_THROUGH, rfc3339, unix_now};
use crate::config::Config;
use crate::formats::Asset;
use crate::policy;
use crate::session::reply::{self, Problem};
use crate::session::{body, public};

/// Longest body.
const MAX_BODY: usize = 32 << 10;
/// Longest reason, in characters.
const MAX_REASON: usize = 1000;

/// The body of a request.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Wanted {
    remote: Option<String>,
    path: Option<String>,
    reason: Option<String>,
}

/// An entry for people; who made it is for those who may make one.
pub(super) fn entry(artifact: &LetThrough, shows_addresses: bool) -> Value {
    let mut entry = json!({
        "remote": artifact.remote,
        "path": artifact.path,
        "reason": artifact.reason,
        "at": rfc3339(artifact.at),
    });
    if shows_addresses {
        entry["by"] = json!(artifact.by);
    }
    entry
}

/// A reason as it is kept.
fn reason(text: Option<&str>) -> Result<String, Problem> {
    let text = text.unwrap_or_default().trim();
    if text.is_empty() {
        let detail = "`reason` is needed: it tells those who look later why this was let through";
        return Err(Problem::new(400, detail));
    }
    if text.chars().count() > MAX_REASON || text.chars().any(char::is_control) {
        let detail = format!("`reason` is one line of at most {MAX_REASON} characters");
        return Err(Problem::new(400, detail));
    }
    Ok(text.to_owned())
}

/// Why `asset` cannot be let through: nothing would ever hold it.
fn is_never_held(asset: &Asset) -> Option<Problem> {
    let detail = match policy::classify(asset) {
        _ if !asset.remote.quarantine.is_on() => "this remote holds nothing back: there is nothing to be let through",
        None => "no pattern of this remote allows the path, whatever is let through",
        Some(policy) if !policy::quarantine::covers(asset, policy) => {
            "indexes and what is mutable are never held back; name the file"
        }
        Some(_) => return None,
    };
    Some(Problem::new(409, detail).at(&asset.remote.name, &asset.path.encoded))
}

impl Api {
    pub(super) async fn release(&self, session: &mut Session, config: &Config, query: &str) -> Result<()> {
        match self.changed(session, config, query).await? {
            Ok((status, answer)) => reply::json(session, status, &answer).await,
            Err(problem) => reply::problem(session, None, problem).await,
        }
    }

    async fn changed(
        &self,
        session: &mut Session,
        config: &Config,
        query: &str,
    ) -> Result<Result<(u16, Value), Problem>> {
        let body = match body::read(session, MAX_BODY, &body::FLUSHES, &config.settings.clients).await? {
            Ok(body) => body,
            Err(problem) => return Ok(Err(problem)),
        };
        let is_new = session.req_header().method == Method::POST;
        let trusted = &config.settings.trusted_proxies;
        let by = public::client(trusted, &public::arrival(session));
        let wanted = match read(&body.bytes, query, is_new) {
            Ok(wanted) => wanted,
            Err(problem) => return Ok(Err(problem)),
        };
        let asset = match artifact(config, wanted.remote.as_deref(), wanted.path.as_deref()) {
            Ok(asset) => asset,
            Err(problem) => return Ok(Err(problem)),
        };
        if let Err(problem) = access::check(session, config, Need::Manage(&asset.remote.name)) {
            return Ok(Err(problem));
        }
        Ok(match is_new {
            true => {
                let reason = match reason(wanted.reason.as_deref()) {
                    Ok(reason) => reason,
                    Err(problem) => return Ok(Err(problem)),
                };
                let by = by.map_or_else(String::new, |by| by.to_string());
                self.let_through(config, &asset, reason, by).await
            }
            false => self.take_back(config, &asset, by.map(|by| by.to_string())).await,
        })
    }

    async fn let_through(
        &self,
        config: &Config,
        asset: &Asset,
        reason: String,
        by: String,
    ) -> Result<(u16, Value), Problem> {
        if let Some(problem) = is_never_held(asset) {
            return Err(problem);
        }
        let key = asset.key();
        let artifact = LetThrough {
            remote: asset.remote.name.clone(),
            path: key.parts().path.to_owned(),
            reason,
            by,
            at: unix_now(),
        };
        let added = self
            .fills
            .let_through
            .add(&self.fills.catalog, config, artifact.clone());
        if !added.await.map_err(|error| away(&error))? {
            let detail =
                format!("{MOST_LET_THROUGH} artifacts are let through already: take some back, or exempt packages");
            return Err(Problem::new(409, detail));
        }
        tracing::info!(
            remote = artifact.remote,
            path = artifact.path,
            reason = artifact.reason,
            by = artifact.by,
            "an artifact is let through quarantine"
        );
        Ok((201, entry(&artifact, true)))
    }

    async fn take_back(&self, config: &Config, asset: &Asset, by: Option<String>) -> Result<(u16, Value), Problem> {
        let removed = self.fills.let_through.remove(&self.fills.catalog, config, asset).await;
        let removed = removed.map_err(|error| away(&error))?;
        if removed.is_empty() {
            let problem = Problem::new(404, "it is not let through");
            return Err(problem.at(&asset.remote.name, &asset.path.encoded));
        }
        for artifact in &removed {
            tracing::info!(
                remote = artifact.remote,
                path = artifact.path,
                by,
                "an artifact is let through quarantine no more"
            );
        }
        let removed: Vec<Value> = removed.iter().map(|artifact| entry(artifact, true)).collect();
        Ok((200, json!({"removed": removed})))
    }

    /// What is let through, as this node knows it.
    pub(super) async fn released(&self, session: &mut Session, config: &Config) -> Result<()> {
        let shows_addresses = access::permits(session, config, Need::ManageAll);
        let Some(list) = self.fills.let_through.list() else {
            let detail = "what is let through was not read from the catalogue yet";
            let problem = Problem::new(503, detail).header(header::RETRY_AFTER, "5");
            return reply::problem(session, None, problem).await;
        };
        let readable = access::readable(session, config);
        let may_be_told = |remote: &String| readable.as_ref().is_none_or(|readable| readable.contains(remote));
        let released = list.iter().filter(|artifact| may_be_told(&artifact.remote));
        let released: Vec<Value> = released.map(|artifact| entry(artifact, shows_addresses)).collect();
        reply::json(session, 200, &json!({"released": released})).await
    }
}

/// What is asked for: by the body, or, to take something back, by the query.
fn read(body: &[u8], query: &str, is_new: bool) -> Result<Wanted, Problem> {
    if !is_new && body.trim_ascii().is_empty() {
        let [remote, path] = parameters(query, ["remote", "path"])?;
        return Ok(Wanted {
            remote,
            path,
            reason: None,
        });
    }
    let wanted: Wanted = serde_json::from_slice(body).map_err(|error| {
        let detail = format!("the body must be {{\"remote\", \"path\", \"reason\"}} in JSON: {error}");
        Problem::new(400, detail)
    })?;
    let is_long = |text: &Option<String>| text.as_ref().is_some_and(|text| text.len() > LONGEST_NAME);
    if is_long(&wanted.remote) || is_long(&wanted.path) {
        return Err(Problem::new(400, format!("a name is longer than {LONGEST_NAME} bytes")));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reason_is_one_line_that_says_something() {
        assert_eq!(reason(Some(" looked at by ops ")).unwrap(), "looked at by ops");
        for bad in [None, Some(""), Some(" \n"), Some("a\nb"), Some(&*"a".repeat(1001))] {
            assert_eq!(reason(bad).unwrap_err().status, 400, "{bad:?}");
        }
    }

    #[test]
    fn what_is_taken_back_is_named_by_body_or_query() {
        let by_query = read(b"", "remote=r&path=a%2520b", false).unwrap();
        assert_eq!(by_query.path.as_deref(), Some("a%20b"));
        let by_body = read(br#"{"remote": "r", "path": "a"}"#, "", false).unwrap();
        assert_eq!(by_body.remote.as_deref(), Some("r"));
        for (body, query) in [("", "remote=r"), ("[]", ""), (r#"{"remot": "r"}"#, "")] {
            assert_eq!(read(body.as_bytes(), query, true).err().unwrap().status, 400, "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body in any::<Vec<u8>>(), query in any::<String>(), is_new in any::<bool>()) {
            let _ = read(&body, &query, is_new);
        }
    }
}
