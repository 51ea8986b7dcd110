//! The registry API (distribution-spec): which remote a request below `/v2/` is for, what belongs to none, and what every
//! answer says.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Docker, PACKAGE, names, pages};
use crate::formats::root::{Below, Meant, Root};
use crate::formats::{Asset, path};

static API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
static NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

impl Root for Docker {
    /// distribution-spec, "Endpoints".
    fn path(&self) -> &'static str {
        "/v2/"
    }

    fn choose(&self, below: Below<'_>) -> Meant {
        let refused = |status, detail: String| Meant::Refused {
            status,
            detail,
            path: None,
        };
        if !matches!(*below.method, Method::GET | Method::HEAD) {
            let detail = "nothing can be pushed, changed or deleted through this proxy: use the registry itself";
            return refused(405, detail.to_owned());
        }
        let (query, namespace) = names::without_namespace(below.query);
        let path = match path::parse(below.raw, query.as_deref()) {
            Ok(path) => path,
            Err(error) => return refused(400, error.to_string()),
        };
        // distribution-spec, "Determining Support"; of one remote too, for clients that think it a registry of its own.
        let remote = below.config.remotes.get(path.encoded.trim_end_matches('/'));
        if path.encoded.is_empty() || remote.is_some_and(|remote| *remote.package == PACKAGE) {
            return Meant::Document(serde_json::json!({}));
        }
        // Before any remote is looked for: no registry's list is ours to give.
        if path.encoded == "_catalog" {
            let detail =
                "the repositories of remotes are not listed here; what is stored is listed by /api/v1/artifacts";
            return Meant::Refused {
                status: 404,
                detail: detail.to_owned(),
                path: Some(path.encoded),
            };
        }
        match names::choose(below.config, below.bound, &path, namespace.as_deref()) {
            Ok((remote, path)) => Meant::Artifact {
                remote,
                path: path.encoded,
                query,
            },
            Err(detail) => refused(404, detail),
        }
    }

    fn says(&self, target: &str, headers: &HeaderMap) -> Vec<(HeaderName, Option<HeaderValue>)> {
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        let namespace = names::without_namespace(query).1;
        let mut says = vec![(API_VERSION.clone(), Some(HeaderValue::from_static("registry/2.0")))];
        // distribution-spec, "Registry Proxying".
        if let Some(value) = namespace.as_ref().and_then(|name| HeaderValue::from_str(name).ok()) {
            says.push((NAMESPACE.clone(), Some(value)));
        }
        // One that cannot be read was refused before (`Asset::pages`).
        let next = pages::next_page(headers).ok().flatten();
        let next = next.and_then(|query| link_to(path, &query, namespace.as_deref()));
        says.push((header::LINK, next));
        says
    }

    fn says_of_stored(&self, asset: &Asset, target: &[u8]) -> Option<&'static [u8]> {
        (asset.digest.is_some() && !target.contains(&b'?'))
            .then_some(b"Docker-Distribution-API-Version: registry/2.0\r\n")
    }
}

/// `Link` to the page that `query` asks for of the list under `path`. That is the path that this client asked for, whatever
/// upstream calls it. Some clients look for no more than a path, so it is spelled out.
fn link_to(path: &str, query: &str, namespace: Option<&str>) -> Option<HeaderValue> {
    let namespace = match namespace {
        Some(namespace) => format!("&ns={}", utf8_percent_encode(namespace, NON_ALPHANUMERIC)),
        None => String::new(),
    };
    HeaderValue::from_str(&format!("<{path}?{query}{namespace}>; rel=\"next\"")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_ours() {
        let link = |namespace: Option<&str>| {
            let link = link_to("/v2/r/a/tags/list", "last=x&n=2", namespace).unwrap();
            link.to_str().unwrap().to_owned()
        };
        assert_eq!(link(None), "</v2/r/a/tags/list?last=x&n=2>; rel=\"next\"");
        assert_eq!(
            link(Some("registry.example")),
            "</v2/r/a/tags/list?last=x&n=2&ns=registry%2Eexample>; rel=\"next\""
        );
    }
}
