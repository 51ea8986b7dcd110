//! What quarantine holds back, why, and what is let through all the same.

mod asked;
mod explain;
mod judged;
mod release;
mod report;

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use pingora_error::Result;
use pingora_proxy::Session;

pub use asked::Asked;

use super::Api;
use crate::config::{Config, Remote};
use crate::fill::let_through::named;
use crate::formats::Asset;
use crate::session::reply::Problem;

/// Longest remote or path that is read, in bytes.
const LONGEST_NAME: usize = 8192;

/// What is answered here of quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// What is and would be held.
    Report { query: String },
    /// Why one artifact is, or is not.
    Explain { query: String },
    /// Lets one through, and takes that back.
    Release { query: String },
    /// What is let through.
    Released,
}

impl Endpoint {
    /// What `path` is for, if it is below `/api/v1/quarantine`.
    pub(crate) fn of(path: &[u8], query: Option<&str>) -> Option<Self> {
        let query = query.unwrap_or_default().to_owned();
        match path.strip_prefix(b"/api/v1/quarantine")? {
            b"" | b"/" => Some(Endpoint::Report { query }),
            b"/explain" => Some(Endpoint::Explain { query }),
            b"/release" => Some(Endpoint::Release { query }),
            b"/released" => Some(Endpoint::Released),
            _ => None,
        }
    }
}

impl Api {
    pub(super) async fn quarantine(&self, session: &mut Session, config: &Config, endpoint: Endpoint) -> Result<()> {
        match endpoint {
            Endpoint::Report { query } => self.report(session, config, &query).await,
            Endpoint::Explain { query } => self.explain(session, config, &query).await,
            Endpoint::Release { query } => self.release(session, config, &query).await,
            Endpoint::Released => self.released(session, config).await,
        }
    }
}

/// The parameters of a query string, each at most once, in the order of `names`. A plus is one: versions have it.
fn parameters<const N: usize>(query: &str, names: [&str; N]) -> Result<[Option<String>; N], Problem> {
    let bad = |detail: String| Err(Problem::new(400, detail));
    let mut values = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(slot) = names.iter().position(|known| *known == name) else {
            let name: String = name.chars().take(80).collect();
            return bad(format!("{name:?} is not a parameter; known are {}", names.join(", ")));
        };
        let Ok(value) = percent_decode_str(value).decode_utf8() else {
            return bad(format!("`{name}` is not UTF-8"));
        };
        if value.len() > LONGEST_NAME {
            return bad(format!("`{name}` is longer than {LONGEST_NAME} bytes"));
        }
        if values[slot].is_some() {
            return bad(format!("`{name}` is given more than once"));
        }
        values[slot] = Some(value.into_owned()).filter(|value| !value.is_empty());
    }
    Ok(values)
}

fn remote<'a>(config: &'a Config, name: &str) -> Result<&'a Arc<Remote>, Problem> {
    config.remotes.get(name).ok_or_else(|| {
        let name: String = name.chars().take(80).collect();
        Problem::new(
            404,
            format!("there is no remote {name:?}; `GET /` lists those there are"),
        )
    })
}

/// The artifact under a path, in whichever spelling a client may ask for it.
fn artifact(config: &Config, name: Option<&str>, path: Option<&str>) -> Result<Asset, Problem> {
    let (Some(name), Some(path)) = (name, path) else {
        let detail = "`remote` and `path` are needed: the path below the remote, as it stands in URLs";
        return Err(Problem::new(400, detail));
    };
    let remote = remote(config, name)?;
    match named(remote, path) {
        Ok(Some(asset)) => Ok(asset),
        Ok(None) => {
            let detail = "no artifact has this path: it is another spelling of one, or a service of upstream's";
            Err(Problem::new(400, detail).at(&remote.name, path))
        }
        Err(error) => Err(Problem::new(400, error.to_string()).at(&remote.name, path)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_read_once_and_a_plus_stays() {
        let read = parameters("path=a%20b%2Bc+d&remote=", ["remote", "path"]).unwrap();
        assert_eq!(read, [None, Some("a b+c+d".to_owned())]);
        for bad in [
            "path=a&path=b",
            "other=1",
            "path=%FF",
            &format!("path={}", "a".repeat(9000)),
        ] {
            assert_eq!(parameters(bad, ["remote", "path"]).unwrap_err().status, 400, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in any::<String>()) {
            let _ = parameters(&query, ["remote", "path"]);
        }
    }
}
