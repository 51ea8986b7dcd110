//! Requests to local repositories: files are uploaded, served as any object is, listed and removed.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use pingora_error::{Error, Result};
use pingora_proxy::Session;
use serde_json::json;

use super::provenance::Provenance;
use super::request::Request;
use super::resolve::{Resolved, Target};
use super::{Client, Ctx, range};
use crate::cache::{Digester, Key, Object};
use crate::catalog::CatalogError;
use crate::config::{Config, Remote, Uploads};
use crate::formats::{self, Asset, path};
use crate::headers;
use crate::local::{self, Current, Failure, Replaces, checksums};
use crate::policy;
use crate::session::body::{self, Pieces};
use crate::session::public;
use crate::session::reply::{self, Problem};

mod listing;

const ALLOWED: &str = "GET, HEAD, PUT, DELETE";
/// What programs send that send a file as if it were a form: it says nothing of the file.
const FORM: &str = "application/x-www-form-urlencoded";

/// A request to a local remote, understood.
struct Asked {
    asset: Arc<Asset>,
    key: Key,
    bound_host: bool,
}

impl Asked {
    fn remote(&self) -> &Arc<Remote> {
        &self.asset.remote
    }

    fn is_folder(&self) -> bool {
        self.asset.path.decoded.is_empty() || self.asset.path.decoded.ends_with('/')
    }

    fn problem(&self, status: u16, detail: impl Into<String>) -> Problem {
        Problem::new(status, detail).at(&self.remote().name, &self.asset.path.encoded)
    }
}

/// Why an upload came to nothing.
enum Trouble {
    Problem(Problem),
    /// The client is gone.
    Gone(Box<Error>),
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        Trouble::Problem(problem)
    }
}

impl From<Box<Error>> for Trouble {
    fn from(error: Box<Error>) -> Self {
        Trouble::Gone(error)
    }
}

/// What is under a path.
enum Found {
    File(Current),
    /// What is there is no file that a validator names, and may be replaced.
    Damaged,
}

impl Found {
    fn object(&self) -> Option<&Object> {
        match self {
            Found::File(current) => Some(&current.object),
            Found::Damaged => None,
        }
    }

    fn length(&self) -> u64 {
        self.object().and_then(Object::length).unwrap_or(0)
    }
}

/// Whether the conditions of a request allow to change what is `found`.
fn may_change(fields: &HeaderMap, found: Option<&Found>) -> bool {
    let etag = found.and_then(Found::object).and_then(Object::etag).unwrap_or_default();
    let modified = found
        .and_then(Found::object)
        .and_then(|object| object.head.last_modified());
    range::may_change(fields, found.map(|_| (etag.as_str(), modified)))
}

/// What was uploaded.
struct Uploaded {
    is_new: bool,
    sha256: String,
    length: u64,
}

impl Client {
    /// Answers a request to a local `remote`.
    pub(super) async fn local(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        config: &Config,
        remote: Arc<Remote>,
        target: Target,
    ) -> Result<bool> {
        let method = session.req_header().method.clone();
        let asked = match understood(session, &remote, target) {
            Ok(asked) => asked,
            Err(problem) => return refuse(session, problem).await,
        };
        match method {
            Method::PUT => match self.upload(session, config, &asked).await {
                Ok(uploaded) => answer_upload(session, config, &asked, &uploaded).await,
                Err(Trouble::Problem(problem)) => refuse(session, problem).await,
                Err(Trouble::Gone(error)) => Err(error),
            },
            Method::DELETE => match self.delete(session, &asked).await {
                Ok(()) => {
                    reply::send(session, 204, Vec::new(), Bytes::new()).await?;
                    Ok(true)
                }
                Err(problem) => refuse(session, problem).await,
            },
            _ if asked.is_folder() => self.list_folder(session, &asked).await,
            _ => self.local_file(session, ctx, asked).await,
        }
    }

    async fn local_file(&self, session: &mut Session, ctx: &mut Ctx, asked: Asked) -> Result<bool> {
        let object = match self.locals.find(&asked.key).await {
            Ok(Some(found)) => found.object,
            Ok(None) => {
                let detail = "no such file in this local remote; a path that ends in `/` lists a folder";
                return refuse(session, asked.problem(404, detail)).await;
            }
            Err(failure) => return refuse(session, told(&asked, &failure)).await,
        };
        ctx.cache = "hit";
        let origin = Provenance {
            source: "cache",
            cache_status: Cow::Borrowed("artifactapi; hit"),
            fresh_from_upstream: false,
        };
        let resolved = Resolved {
            format: formats::of_remote(asked.remote()),
            policy: policy::of_local(),
            key: asked.key,
            manifest: None,
            bound_host: asked.bound_host,
            asset: asked.asset,
        };
        let head = session.req_header().method == Method::HEAD;
        let request = Request::plain(Arc::new(resolved), head);
        self.deliver(session, ctx, &request, object, origin).await
    }

    /// What is under the path now.
    async fn found(&self, asked: &Asked) -> std::result::Result<Option<Found>, Problem> {
        match self.locals.find(&asked.key).await {
            Ok(current) => Ok(current.map(Found::File)),
            Err(Failure::Damaged(_)) => Ok(Some(Found::Damaged)),
            Err(failure) => Err(told(asked, &failure)),
        }
    }

    /// Receives a file, and stores it if all that was said of it is true.
    async fn upload(
        &self,
        session: &mut Session,
        config: &Config,
        asked: &Asked,
    ) -> std::result::Result<Uploaded, Trouble> {
        let uploads = asked.remote().uploads;
        let fields = session.req_header().headers.clone();
        let (content_type, checksums) = about(asked, &fields)?;
        let length = content_length(&fields);
        if length.is_some_and(|length| uploads.longest.is_some_and(|longest| length > longest)) {
            return Err(too_long(asked, uploads).into());
        }
        let found = self.found(asked).await?;
        judge(asked, &fields, found.as_ref())?;
        let mut promise = match uploads.quota {
            None => None,
            Some(quota) => {
                let replaced = found.as_ref().map_or(0, Found::length);
                let promised = self.locals.promise(&asked.remote().name, quota, replaced).await;
                Some(promised.map_err(|error| uncounted(asked, &error))?)
            }
        };
        let mut has_room = |bytes: u64| promise.as_mut().is_none_or(|promise| promise.grow(bytes));
        if !has_room(length.unwrap_or(0)) {
            return Err(beyond_quota(asked, uploads).into());
        }
        let digester = Digester::new(checksums.iter().map(|checksum| checksum.algorithm));
        let received = self.locals.receive(asked.key.clone(), content_type, length, digester);
        let mut incoming = received.await.map_err(|error| disk_failed(asked, &error))?;
        let mut pieces = Pieces::new(&config.settings.clients);
        while let Some(piece) = pieces.next(session).await?? {
            let so_far = incoming.length() + piece.len() as u64;
            if uploads.longest.is_some_and(|longest| so_far > longest) {
                return Err(too_long(asked, uploads).into());
            }
            if !has_room(so_far) {
                return Err(beyond_quota(asked, uploads).into());
            }
            let written = incoming.write(&piece).await;
            written.map_err(|error| disk_failed(asked, &error))?;
        }
        if let Some(length) = length.filter(|length| *length != incoming.length()) {
            let detail = format!(
                "the body ended after {} of {length} bytes: nothing was stored",
                incoming.length()
            );
            return Err(asked.problem(400, detail).into());
        }
        let digester = incoming.end().await.map_err(|error| disk_failed(asked, &error))?;
        let sha256 = hex::encode(digester.sha256());
        if let Some(wrong) = checksums.iter().find_map(|checksum| checksum.mismatch(digester)) {
            return Err(asked.problem(400, format!("{wrong}: nothing was stored")).into());
        }
        let length = incoming.length();
        let name = self.locals.name(asked.key.clone()).await;
        // Somebody else may have been quicker.
        let found = self.found(asked).await?;
        judge(asked, &fields, found.as_ref())?;
        let replaces = match (&found, is_particular(&fields) || !uploads.overwrite) {
            (Some(Found::File(current)), true) => Replaces::Only(Some(current)),
            (None, true) => Replaces::Only(None),
            (Some(Found::Damaged), _) | (_, false) => Replaces::Any,
        };
        let kept = self.locals.keep(&name, incoming, replaces).await;
        kept.map_err(|failure| told(asked, &failure))?;
        if let Some(promise) = promise {
            promise.keep();
        }
        Ok(Uploaded {
            is_new: found.is_none(),
            sha256,
            length,
        })
    }

    async fn delete(&self, session: &Session, asked: &Asked) -> std::result::Result<(), Problem> {
        let name = self.locals.name(asked.key.clone()).await;
        let found = self.found(asked).await?;
        if found.is_some() && !may_change(&session.req_header().headers, found.as_ref()) {
            return Err(asked.problem(
                412,
                "the file is not what `If-Match` or `If-Unmodified-Since` says: it stays",
            ));
        }
        let removed = self.locals.remove(&name).await;
        match removed.map_err(|failure| told(asked, &failure))? {
            true => Ok(()),
            false => Err(asked.problem(404, "no such file in this local remote")),
        }
    }
}

/// Reads what is asked of a local `remote`.
fn understood(session: &Session, remote: &Arc<Remote>, target: Target) -> std::result::Result<Asked, Problem> {
    let method = &session.req_header().method;
    let shown = String::from_utf8_lossy(&target.raw).into_owned();
    let writes = matches!(*method, Method::PUT | Method::DELETE);
    if !writes && !matches!(*method, Method::GET | Method::HEAD) {
        let detail = format!("{method} is not allowed on a local remote, {ALLOWED} are");
        return Err(Problem::new(405, detail)
            .at(&remote.name, &shown)
            .header(header::ALLOW, ALLOWED));
    }
    let problem = |status, detail: String| Problem::new(status, detail).at(&remote.name, &shown);
    let path = path::parse(&target.raw, target.query.as_deref()).map_err(|error| problem(400, error.to_string()))?;
    let Some(mut asset) = formats::asset(remote, path, None) else {
        return Err(problem(404, "no such file in this local remote".to_owned()));
    };
    asset.governing.clone_from(&asset.path.decoded);
    let asked = Asked {
        key: Key::of_local(&remote.name, &asset.path.encoded),
        bound_host: target.bound_host,
        asset: Arc::new(asset),
    };
    if writes && asked.is_folder() {
        let detail = "the path of a file does not end in `/`; folders come and go with the files in them";
        return Err(asked.problem(400, detail));
    }
    if writes && asked.asset.path.query.is_some() {
        return Err(asked.problem(400, "a file is stored under its path: leave the query out"));
    }
    // What is not allowed any more may be removed; what a folder holds is judged file by file.
    let is_judged = *method != Method::DELETE && !asked.is_folder();
    if is_judged && policy::classify(&asked.asset).is_none() {
        let detail = "no pattern of this remote allows the path; add one to `immutable_patterns` or `mutable_patterns`";
        return Err(asked.problem(403, detail));
    }
    Ok(asked)
}

/// What an upload says of itself: its type, and what it must turn out to be.
fn about(asked: &Asked, fields: &HeaderMap) -> std::result::Result<(HeaderValue, Vec<local::Checksum>), Problem> {
    if fields.contains_key(header::CONTENT_RANGE) {
        let detail = "a file is uploaded whole: a PUT with `Content-Range` is not taken (RFC 9110 section 14.5)";
        return Err(asked.problem(400, detail));
    }
    if headers::is_coded(fields) {
        let detail = "a file is stored as it is sent: send it without `Content-Encoding`";
        return Err(asked.problem(415, detail).header(header::ACCEPT_ENCODING, "identity"));
    }
    let checksums = checksums(fields).map_err(|error| asked.problem(400, error.to_string()))?;
    let named = fields.get(header::CONTENT_TYPE).filter(|value| {
        let value = value.as_bytes().trim_ascii();
        !value.is_empty() && !value.to_ascii_lowercase().starts_with(FORM.as_bytes())
    });
    let content_type = match named {
        Some(named) => named.clone(),
        None => HeaderValue::from_static(asked.asset.media_type),
    };
    Ok((content_type, checksums))
}

/// Whether an upload has conditions, so that it may not take the place of whatever is there.
fn is_particular(fields: &HeaderMap) -> bool {
    let conditions = [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_UNMODIFIED_SINCE];
    conditions.iter().any(|name| fields.contains_key(name))
}

fn content_length(fields: &HeaderMap) -> Option<u64> {
    fields.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether an upload may take the place of what is `found`.
fn judge(asked: &Asked, fields: &HeaderMap, found: Option<&Found>) -> std::result::Result<(), Problem> {
    if !may_change(fields, found) {
        let detail = match found {
            Some(_) => "what is stored there is not what the conditions of this upload say: it stays",
            None => "nothing is stored there, and the conditions of this upload say that something is",
        };
        return Err(asked.problem(412, detail));
    }
    if found.is_some() && !asked.remote().uploads.overwrite {
        let detail = "there is such a file, and this remote lets none be replaced (`overwrite: false`): choose another name, or \
                      remove it first";
        return Err(asked.problem(409, detail));
    }
    Ok(())
}

fn too_long(asked: &Asked, uploads: Uploads) -> Problem {
    let longest = uploads.longest.unwrap_or(0);
    asked.problem(
        413,
        format!("the file is longer than the {longest} bytes that `max_upload` of this remote allows"),
    )
}

fn beyond_quota(asked: &Asked, uploads: Uploads) -> Problem {
    let quota = uploads.quota.unwrap_or(0);
    asked.problem(
        507,
        format!("the file does not fit in the {quota} bytes that `quota` gives this remote: remove files, or raise it"),
    )
}

fn uncounted(asked: &Asked, error: &CatalogError) -> Problem {
    let detail = format!("what the files of this remote take cannot be told now, and it has a quota: {error}");
    asked.problem(503, detail).header(header::RETRY_AFTER, "5")
}

/// Why a file could not be written, found or removed.
fn disk_failed(asked: &Asked, error: &io::Error) -> Problem {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull, TimedOut};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => asked.problem(
            507,
            format!("the disk has no room for this file: {error}; nothing was stored"),
        ),
        TimedOut => asked
            .problem(503, format!("{error}; try again"))
            .header(header::RETRY_AFTER, "30"),
        _ => asked.problem(500, format!("the disk failed: {error}")),
    }
}

/// What a client is told of a failure.
fn told(asked: &Asked, failure: &Failure) -> Problem {
    match failure {
        Failure::Damaged(_) => asked.problem(500, failure.to_string()),
        Failure::Unfit => asked.problem(400, failure.to_string()),
        Failure::Taken if asked.remote().uploads.overwrite => asked.problem(412, failure.to_string()),
        Failure::Taken => asked.problem(409, failure.to_string()),
        Failure::Disk(error) => disk_failed(asked, error),
        Failure::Away(_) => asked.problem(503, failure.to_string()).header(header::RETRY_AFTER, "5"),
    }
}

async fn answer_upload(session: &mut Session, config: &Config, asked: &Asked, uploaded: &Uploaded) -> Result<bool> {
    let (remote, encoded) = (&asked.remote().name, &asked.asset.path.encoded);
    let root = public::of_remote(&config.settings, &public::arrival(session), remote, asked.bound_host);
    let location = match root {
        Some(root) => format!("{root}/{encoded}"),
        None => format!("/api/v1/remote/{remote}/{encoded}"),
    };
    let body = json!({
        "remote": remote,
        "path": encoded,
        "size": uploaded.length,
        "digest": format!("sha256:{}", uploaded.sha256),
    });
    let fields = vec![
        (header::LOCATION, location),
        (header::ETAG, format!("\"{}\"", uploaded.sha256)),
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    let status = if uploaded.is_new { 201 } else { 200 };
    reply::send(session, status, fields, format!("{body}\n").into()).await?;
    Ok(true)
}

/// Says what is wrong. Of a body that nobody reads the rest is passed over.
async fn refuse(session: &mut Session, problem: Problem) -> Result<bool> {
    let has_body = !session.as_downstream_mut().is_body_done();
    if has_body {
        session.set_keepalive(None);
    }
    reply::problem(session, None, problem).await?;
    if has_body {
        body::pass_over(session).await?;
    }
    Ok(true)
}
