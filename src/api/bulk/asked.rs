//! The body of `POST /api/v1/artifacts`, read and checked.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{Config, Remote};
use crate::formats;
use crate::formats::order::{self, Step};

/// Artifacts that are fetched at once, where nothing else is asked for.
const USUAL: usize = 8;
/// ... and at most.
const MOST: usize = 32;
/// Most orders in one request.
pub(super) const MOST_ORDERS: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    artifacts: Vec<Map<String, Value>>,
    parallel: Option<usize>,
}

/// What is to be cached.
#[derive(Debug)]
pub(super) struct Asked {
    pub first: Vec<Wanted>,
    pub parallel: usize,
}

/// A step below a remote.
#[derive(Debug)]
pub(super) struct Wanted {
    pub remote: Arc<Remote>,
    pub step: Step,
}

impl Asked {
    /// # Errors
    /// What is wrong with the body, for a person.
    pub(super) fn read(config: &Config, body: &[u8]) -> Result<Asked, String> {
        let body: Body = serde_json::from_slice(body)
            .map_err(|error| format!("the body is not {{\"artifacts\": [{{\"remote\", \"path\"}}, …]}}: {error}"))?;
        if body.artifacts.len() > MOST_ORDERS {
            return Err(format!(
                "`artifacts` has more than {MOST_ORDERS} entries: send several lists"
            ));
        }
        let parallel = body.parallel.unwrap_or(USUAL);
        if !(1..=MOST).contains(&parallel) {
            return Err(format!("`parallel` is not a number from 1 to {MOST}"));
        }
        let mut first = Vec::new();
        for (at, entry) in body.artifacts.iter().enumerate() {
            let wrong = |detail: String| format!("`artifacts[{at}]`: {detail}");
            let name = entry.get("remote").and_then(Value::as_str);
            let name = name.ok_or_else(|| wrong("`remote` is missing, or not a string".to_owned()))?;
            let Some(remote) = config.remotes.get(name) else {
                let name: String = name.chars().take(80).collect();
                return Err(wrong(format!(
                    "there is no remote {name:?}; `GET /` lists those there are"
                )));
            };
            let format = formats::of_remote(remote);
            let steps = order::read(remote, format.terms(), entry).map_err(wrong)?;
            first.extend(steps.into_iter().map(|step| Wanted {
                remote: Arc::clone(remote),
                step,
            }));
        }
        Ok(Asked { first, parallel })
    }
}
