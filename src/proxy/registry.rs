//! The registry API (`/v2/`, distribution-spec): which remote a request is for, what belongs to none, and what every
//! answer says.
//!
//! A name begins with its remote's. A container host that takes this proxy for a mirror leaves that out: then `?ns=` says
//! which registry it means, or the configuration does (`docker.default_remote`).

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pingora_core::modules::http::{HttpModule, HttpModuleBuilder, Module};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::resolve::{HotKey, Resolved, Target};
use super::{Client, Ctx, wire};
use crate::config::{Config, Remote};
use crate::formats::docker::{names, pages, referrers};
use crate::formats::{self, Asset, path};
use crate::session::reply::{self, Problem};

static API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
static NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// A request below `/v2/`.
pub(super) struct Asked {
    pub raw: Vec<u8>,
    pub query: Option<String>,
    /// The remote that the host is bound to.
    pub bound: Option<Arc<Remote>>,
}

impl Client {
    /// Answers a request below `/v2/`.
    pub(super) async fn registry(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        config: &Config,
        asked: Asked,
        hot: Option<HotKey>,
    ) -> Result<bool> {
        speak(session);
        let format = Some(&formats::docker::Docker as &dyn formats::Format);
        let method = session.req_header().method.clone();
        if !matches!(method, Method::GET | Method::HEAD) {
            let detail = "nothing can be pushed, changed or deleted through this proxy: use the registry itself";
            let problem = Problem::new(405, detail).header(header::ALLOW, "GET, HEAD");
            return self.refuse(session, format, problem).await;
        }
        let (query, namespace) = names::without_namespace(asked.query.as_deref());
        let path = match path::parse(&asked.raw, query.as_deref()) {
            Ok(path) => path,
            Err(error) => return self.refuse(session, format, Problem::new(400, error.to_string())).await,
        };
        // distribution-spec, "Determining Support"; of one remote too, for clients that think it a registry of its own.
        let remote = config.remotes.get(path.encoded.trim_end_matches('/'));
        if path.encoded.is_empty() || remote.is_some_and(|remote| formats::of_remote(remote).root().is_some()) {
            reply::json(session, 200, &serde_json::json!({})).await?;
            return Ok(true);
        }
        // Before any remote is looked for: no registry's list is ours to give.
        if path.encoded == "_catalog" {
            let detail =
                "the repositories of remotes are not listed here; what is stored is listed by /api/v1/artifacts";
            let problem = Problem {
                path: Some(path.encoded),
                ..Problem::new(404, detail)
            };
            return self.refuse(session, format, problem).await;
        }
        let (remote, below) = match names::choose(config, asked.bound.as_ref(), &path, namespace.as_deref()) {
            Ok(chosen) => chosen,
            Err(detail) => return self.refuse(session, format, Problem::new(404, detail)).await,
        };
        let target = Target {
            raw: below.encoded.into_bytes(),
            query,
            bound_host: asked.bound.is_some(),
            registry: true,
        };
        if referrers::tag(&below.decoded).is_some() {
            return self.referrers(session, ctx, remote, target).await;
        }
        self.artifact(session, ctx, config, remote, target, hot).await
    }
}

/// What [`Voice`] would add to a hit, in lines of HTTP/1.1; `None` where that depends on the request or the list stored.
pub(super) fn lines_of_hits(resolved: &Resolved, target: &[u8]) -> Option<&'static [u8]> {
    if resolved.format.root().is_none() {
        return Some(b"");
    }
    (resolved.digest.is_some() && !target.contains(&b'?'))
        .then_some(b"Docker-Distribution-API-Version: registry/2.0\r\n")
}

/// From now on this answer is a registry's.
pub(super) fn speak(session: &mut Session) {
    let target = wire::origin_form(session.req_header().raw_path());
    let target = String::from_utf8_lossy(target);
    let (path, query) = target
        .split_once('?')
        .map_or((&*target, None), |(path, query)| (path, Some(query)));
    let spoken = Spoken {
        path: path.to_owned(),
        namespace: names::without_namespace(query).1,
    };
    if let Some(voice) = session.downstream_modules_ctx.get_mut::<Voice>() {
        voice.0 = Some(spoken);
    }
}

/// Makes a [`Voice`] for each request.
pub(super) struct VoiceBuilder;

impl HttpModuleBuilder for VoiceBuilder {
    fn init(&self) -> Module {
        Box::new(Voice(None))
    }
}

/// Adds to answers of the registry API, wherever they are written, what all of them say.
struct Voice(Option<Spoken>);

/// How the request asked.
struct Spoken {
    path: String,
    namespace: Option<String>,
}

#[async_trait]
impl HttpModule for Voice {
    async fn response_header_filter(&mut self, response: &mut ResponseHeader, _: bool) -> Result<()> {
        let Some(spoken) = self.0.as_ref().filter(|_| response.status.as_u16() >= 200) else {
            return Ok(());
        };
        response.insert_header(API_VERSION.clone(), HeaderValue::from_static("registry/2.0"))?;
        // distribution-spec, "Registry Proxying".
        if let Some(namespace) = spoken
            .namespace
            .as_ref()
            .and_then(|name| HeaderValue::from_str(name).ok())
        {
            response.insert_header(NAMESPACE.clone(), namespace)?;
        }
        // One that cannot be read was refused before: see `check_pages`.
        let next = pages::next_page(&response.headers).ok().flatten();
        response.remove_header(&header::LINK);
        if let Some(next) = next.and_then(|query| spoken.link_to(&query)) {
            response.insert_header(header::LINK, next)?;
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Spoken {
    /// `Link` to the page of this list that `query` asks for. Its path is the one that this client asked for, whatever
    /// upstream calls it. Some clients look for no more than a path, so it is spelled out.
    fn link_to(&self, query: &str) -> Option<HeaderValue> {
        let namespace = match &self.namespace {
            Some(namespace) => format!("&ns={}", utf8_percent_encode(namespace, NON_ALPHANUMERIC)),
            None => String::new(),
        };
        HeaderValue::from_str(&format!("<{}?{query}{namespace}>; rel=\"next\"", self.path)).ok()
    }
}

/// Whether the page of a list that upstream answered with can be handed on: not if there is a next one that clients could
/// not be told of, because the list would look complete to them.
///
/// # Errors
/// Why not.
pub(super) fn check_pages(asset: &Asset, headers: &HeaderMap) -> std::result::Result<(), &'static str> {
    if !asset.pages || pages::next_page(headers).is_ok() {
        return Ok(());
    }
    Err("upstream's list has another page, and its Link header does not say where: the rest cannot be had")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_ours() {
        let link = |namespace: Option<&str>| {
            let spoken = Spoken {
                path: "/v2/r/a/tags/list".to_owned(),
                namespace: namespace.map(str::to_owned),
            };
            spoken.link_to("last=x&n=2").unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(link(None), "</v2/r/a/tags/list?last=x&n=2>; rel=\"next\"");
        assert_eq!(
            link(Some("registry.example")),
            "</v2/r/a/tags/list?last=x&n=2&ns=registry%2Eexample>; rel=\"next\""
        );
    }
}
