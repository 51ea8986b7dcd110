//! The registry API (`/v2/`, distribution-spec): which remote a request is for, what belongs to none, and what every
//! answer says.
//!
//! A name begins with its remote's. A container host that takes this proxy for a mirror leaves that out: then `?ns=` says
//! which registry it means, or the configuration does (`docker.default_remote`).

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use pingora_core::modules::http::{HttpModule, HttpModuleBuilder, Module};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::resolve::{HotKey, Resolved, Target};
use super::{Client, Ctx, wire};
use crate::config::{Config, Package, Remote};
use crate::fields;
use crate::formats::{self, ArtifactPath, Asset, docker, path};
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
        let format = Some(formats::of(Package::Docker));
        let method = session.req_header().method.clone();
        if !matches!(method, Method::GET | Method::HEAD) {
            let detail = "nothing can be pushed, changed or deleted through this proxy: use the registry itself";
            let problem = Problem::new(405, detail).header(header::ALLOW, "GET, HEAD");
            return self.refuse(session, format, problem).await;
        }
        let (query, namespace) = without_namespace(asked.query.as_deref());
        let path = match path::parse(&asked.raw, query.as_deref()) {
            Ok(path) => path,
            Err(error) => return self.refuse(session, format, Problem::new(400, error.to_string())).await,
        };
        // distribution-spec, "Determining Support"; of one remote too, for clients that think it a registry of its own.
        let remote = config.remotes.get(path.encoded.trim_end_matches('/'));
        if path.encoded.is_empty() || remote.is_some_and(|remote| remote.package == Package::Docker) {
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
        let (remote, below) = match choose(config, asked.bound.as_ref(), &path, namespace.as_deref()) {
            Ok(chosen) => chosen,
            Err(problem) => return self.refuse(session, format, problem).await,
        };
        let target = Target {
            raw: below.encoded.into_bytes(),
            query,
            bound_host: asked.bound.is_some(),
            registry: true,
        };
        if docker::referrers_tag(&below.decoded).is_some() {
            return self.referrers(session, ctx, remote, target).await;
        }
        self.artifact(session, ctx, config, remote, target, hot).await
    }
}

/// The remote that a path below `/v2/` is for, and the path below that remote.
fn choose(
    config: &Config,
    bound: Option<&Arc<Remote>>,
    path: &ArtifactPath,
    namespace: Option<&str>,
) -> std::result::Result<(Arc<Remote>, ArtifactPath), Problem> {
    if let Some(remote) = bound {
        return Ok((Arc::clone(remote), path.clone()));
    }
    let (first, rest) = path.encoded.split_once('/').unwrap_or((&path.encoded, ""));
    // containerd, told of `http://this/v2/{remote}` without `override_path`, adds what it thinks is missing.
    let rest = rest.strip_prefix("v2/").filter(|_| namespace.is_some()).unwrap_or(rest);
    let named = config.remotes.get(first);
    let below = || ArtifactPath {
        encoded: rest.to_owned(),
        decoded: formats::links::decode_once(rest),
        query: path.query.clone(),
    };
    let mut registries = config
        .remotes
        .values()
        .filter(|remote| remote.package == Package::Docker);
    let called = namespace.and_then(|namespace| registries.find(|remote| docker::is_called(remote, namespace)));
    // An organisation of that registry may be called as one of our remotes is.
    let named = named.filter(|named| called.is_none_or(|called| Arc::ptr_eq(called, named)));
    let registry = named.filter(|remote| remote.package == Package::Docker);
    // `manifests/{tag}` alone has no repository left: the first part was one, then.
    let has_name = rest.split('/').count() > 2;
    if let Some(remote) = registry.filter(|_| has_name) {
        return Ok((Arc::clone(remote), below()));
    }
    let unknown = |detail: String| Err(Problem::new(404, detail));
    if let Some(namespace) = namespace {
        return match called {
            Some(remote) => Ok((Arc::clone(remote), path.clone())),
            None => unknown(format!(
                "no remote's `base_url` is at the registry {namespace:?}, which `?ns=` names; `GET /` lists the remotes"
            )),
        };
    }
    let default = config.settings.docker_default_remote.as_ref();
    if let Some(remote) = default.and_then(|name| config.remotes.get(name)) {
        return Ok((Arc::clone(remote), path.clone()));
    }
    match (registry, named) {
        (Some(remote), _) => Ok((Arc::clone(remote), below())),
        (None, Some(_)) => unknown(format!(
            "remote {first} is no Docker registry: ask for /api/v1/remote/{first}/{rest}"
        )),
        (None, None) => unknown(format!(
            "there is no remote {first:?}; `GET /` lists those there are, `docker.default_remote` serves names without one"
        )),
    }
}

/// Takes `ns=` out of a query, which containerd adds for mirrors: it is neither part of a key nor upstream's business.
fn without_namespace(query: Option<&str>) -> (Option<String>, Option<String>) {
    let Some(query) = query else { return (None, None) };
    let mut namespace = None;
    let mut rest = Vec::new();
    for pair in query.split('&') {
        match pair.strip_prefix("ns=") {
            Some(value) => {
                let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
                namespace = namespace.or(Some(value).filter(|value| !value.is_empty()));
            }
            None => rest.push(pair),
        }
    }
    let rest = rest.join("&");
    (Some(rest).filter(|rest| !rest.is_empty()), namespace)
}

/// What [`Voice`] would add to a hit, in lines of HTTP/1.1; `None` where that depends on the request or the list stored.
pub(super) fn lines_of_hits(resolved: &Resolved, target: &[u8]) -> Option<&'static [u8]> {
    if resolved.remote.package != Package::Docker {
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
        namespace: without_namespace(query).1,
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
        let next = next_page(&response.headers).ok().flatten();
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

/// A `Link` of which it cannot be told where the next page is.
#[derive(Debug, PartialEq, Eq)]
struct Unreadable;

/// Whether the page of a list that upstream answered with can be handed on: not if there is a next one that clients could
/// not be told of, because the list would look complete to them.
///
/// # Errors
/// Why not.
pub(super) fn check_pages(asset: &Asset, headers: &HeaderMap) -> std::result::Result<(), &'static str> {
    if !asset.pages || next_page(headers).is_ok() {
        return Ok(());
    }
    Err("upstream's list has another page, and its Link header does not say where: the rest cannot be had")
}

/// The query of the next page (distribution-spec, "Content Discovery": the same list with another query): that of the link
/// with `rel=next`, else, as clients read it, of the first link that says nothing of what it is.
fn next_page(headers: &HeaderMap) -> std::result::Result<Option<String>, Unreadable> {
    let mut unnamed = None;
    for field in headers.get_all(header::LINK) {
        let field = String::from_utf8_lossy(field.as_bytes());
        let mut rest = &*field;
        while let Some((link, after)) = PageLink::read(rest)? {
            match &link.relations {
                Some(relations)
                    if relations
                        .split_ascii_whitespace()
                        .any(|one| one.eq_ignore_ascii_case("next")) =>
                {
                    return link.query().map(Some);
                }
                Some(_) => {}
                None => unnamed = unnamed.or(Some(link.query())),
            }
            rest = after;
        }
    }
    unnamed.transpose()
}

/// One link of a `Link` field (RFC 8288 section 3), also as registries misspell it.
struct PageLink<'a> {
    target: &'a str,
    /// `rel`
    relations: Option<String>,
}

impl<'a> PageLink<'a> {
    /// The first link of `text`, and what follows it.
    fn read(text: &'a str) -> std::result::Result<Option<(Self, &'a str)>, Unreadable> {
        let text = text.trim_start_matches([' ', '\t', ',']);
        if text.is_empty() {
            return Ok(None);
        }
        let (target, mut rest) = match text.strip_prefix('<') {
            Some(text) => text.split_once('>').ok_or(Unreadable)?,
            // Without brackets everything before the parameters is the target.
            None => text.split_at(text.find(';').unwrap_or(text.len())),
        };
        let mut relations = None;
        loop {
            rest = rest.trim_start_matches(|c| !matches!(c, ';' | ','));
            let Some(parameter) = rest.strip_prefix(';') else {
                let target = target.trim();
                return Ok(Some((PageLink { target, relations }, rest)));
            };
            let (name, after) = fields::token(parameter.trim_start());
            rest = after;
            let Some(value) = after.trim_start().strip_prefix('=').map(str::trim_start) else {
                continue;
            };
            let single = value.strip_prefix('\'').and_then(|value| value.split_once('\''));
            let (value, after) = match single {
                Some((value, after)) => (value.to_owned(), after),
                None => fields::value(value, &[';', ',']),
            };
            rest = after;
            if name.eq_ignore_ascii_case("rel") {
                // Of several the first counts.
                relations = relations.or(Some(value));
            }
        }
    }

    fn query(&self) -> std::result::Result<String, Unreadable> {
        let (_, query) = self
            .target
            .split('#')
            .next()
            .and_then(|target| target.split_once('?'))
            .ok_or(Unreadable)?;
        let is_sendable = !query.is_empty() && query.bytes().all(|byte| byte.is_ascii_graphic());
        is_sendable.then(|| query.to_owned()).ok_or(Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_taken_out_of_the_query() {
        let split = |query: &str| {
            let (rest, namespace) = without_namespace(Some(query));
            (rest.unwrap_or_default(), namespace.unwrap_or_default())
        };
        let is = |query: &str, rest: &str, namespace: &str| {
            assert_eq!(split(query), (rest.to_owned(), namespace.to_owned()), "{query}");
        };
        is("ns=registry.example", "", "registry.example");
        is(
            "n=5&ns=registry.example%3A5000&last=a",
            "n=5&last=a",
            "registry.example:5000",
        );
        is("ns=", "", "");
        is("dns=a&n=1", "dns=a&n=1", "");
        is("ns=a&ns=b", "", "a");
        assert_eq!(without_namespace(None), (None, None));
    }

    fn linked(links: &[&str]) -> std::result::Result<Option<String>, Unreadable> {
        let mut headers = HeaderMap::new();
        for link in links {
            headers.append(header::LINK, HeaderValue::from_bytes(link.as_bytes()).unwrap());
        }
        next_page(&headers)
    }

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

    #[test]
    fn the_next_page_is_found_where_clients_find_it() {
        for link in [
            "</v2/a/tags/list?last=x&n=2>; rel=\"next\"",
            "<https://registry.example/v2/a/tags/list?last=x&n=2>; rel=next",
            "<?last=x&n=2>;rel=\"next\"",
            "<?last=x&n=2#f>; REL=Next",
            "<?last=nextcloud,old>; rel=\"prev\", <?last=x&n=2>; title=a; rel=\"last next\"",
            // Without brackets, a relation, or quotes that HTTP knows.
            "</v2/a/tags/list?last=x&n=2>",
            "</v2/a/tags/list?last=x&n=2>; title=\"a, b; rel=prev\"",
            "/v2/a/tags/list?last=x&n=2; rel=\"next\"",
            "https://registry.example/v2/a/tags/list?last=x&n=2",
            "</v2/a/tags/list?last=x&n=2>; rel='next'",
            "</v2/a/tags/list?last=x&n=2>; rel='last next'; title='x'",
            "<?last=a>; rel='prev', <?last=x&n=2>",
            "<?last=a>, <?last=x&n=2>; rel=next",
            "<?last=x&n=2> ; crossorigin ; rel = \"next\"",
        ] {
            assert_eq!(linked(&[link]), Ok(Some("last=x&n=2".to_owned())), "{link}");
        }
        assert_eq!(
            linked(&["<a?b>; rel=prev", "<c?d>; rel=next"]),
            Ok(Some("d".to_owned()))
        );
        for links in [
            &[][..],
            &[""],
            &["<a?b>; rel=\"prev\""],
            &["<a>; rel=help, <b>; rel=first"],
        ] {
            assert_eq!(linked(links), Ok(None), "{links:?}");
        }
        for link in [
            "next",
            "<no-query>; rel=\"next\"",
            "<?n=1; rel=\"next\"",
            "<>",
            "<?>",
            "<a?b c>",
            "<a?é>",
            "<a>",
        ] {
            assert_eq!(linked(&[link]), Err(Unreadable), "{link}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_link_is_read_or_refused(link in "[a<>?;,=\"'# relnxt]{0,24}") {
            if let Ok(Some(query)) = linked(&[&link]) {
                proptest::prop_assert!(!query.is_empty() && link.contains(&query));
            }
        }
    }
}
