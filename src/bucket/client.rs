//! Questions to an S3 service, each signed as a URL (Signature Version 4). Nothing is tried again here, and no time is
//! limited: callers know how long they can wait.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use reqwest::{Body, Response};
use rusty_s3::actions::{CompleteMultipartUpload, CreateMultipartUpload, ListObjectsV2, S3Action, UploadPart};
use rusty_s3::{Bucket as Place, Credentials, Map, UrlStyle};
use url::Url;

use super::name::PREFIX;
use crate::config;

/// A signature is made for each question; this only has to outlast differing clocks.
const SIGNED_FOR: Duration = Duration::from_secs(900);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Connections that nobody uses are kept for this long.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
const IDLE_CONNECTIONS: usize = 32;
/// No answer that is read whole is longer: a page of a listing has a thousand names of a kilobyte.
const MAX_ANSWER: usize = 4 << 20;
/// Of what a service says of an error.
const MAX_SAID: usize = 300;

/// Why a question brought nothing. No text of it holds a secret or a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// There was no answer, or it broke off.
    #[error("{0}")]
    Unreachable(String),
    #[error("HTTP {status}{}{code}{}{message}", if .code.is_empty() { "" } else { " " }, if .message.is_empty() { "" } else { ": " })]
    Refused {
        status: u16,
        /// The text of `<Code>`: `NoSuchBucket`. Empty where there was none, as in any answer to HEAD.
        code: String,
        message: String,
    },
    #[error("the answer cannot be understood: {0}")]
    Nonsense(String),
}

impl Failure {
    /// Whether the service, rather than this one question, is what is wrong. A refusal may be either.
    pub fn is_of_service(&self) -> bool {
        match self {
            Failure::Unreachable(_) | Failure::Nonsense(_) => true,
            Failure::Refused { status, code, .. } => {
                *status >= 500 || matches!(status, 408 | 429) || code == "NoSuchBucket"
            }
        }
    }

    pub fn is_missing_bucket(&self) -> bool {
        matches!(self, Failure::Refused { code, .. } if code == "NoSuchBucket")
    }

    /// The service is well and has no room: it says so.
    pub fn is_full(&self) -> bool {
        const SAID: [&str; 4] = ["Quota", "StorageFull", "InsufficientStorage", "InsufficientCapacity"];
        match self {
            Failure::Refused { status, code, .. } => *status == 507 || SAID.iter().any(|said| code.contains(said)),
            Failure::Unreachable(_) | Failure::Nonsense(_) => false,
        }
    }

    /// The upload of several parts is not known, or no longer.
    pub fn is_missing_upload(&self) -> bool {
        matches!(self, Failure::Refused { status, code, .. } if code == "NoSuchUpload" || *status == 404 && code.is_empty())
    }
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its whole name in the bucket.
    pub object: String,
    /// In bytes.
    pub length: u64,
}

/// A page of a listing.
#[derive(Debug, Clone)]
pub struct Page {
    pub objects: Vec<Listed>,
    /// What to ask with for the next page; `None` at the end.
    pub next: Option<String>,
}

/// An upload of several parts that was begun and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    pub object: String,
    pub upload: String,
    /// RFC 3339 in UTC.
    pub initiated: String,
}

/// A client for one bucket.
pub struct Client {
    place: Place,
    credentials: Credentials,
    http: ArcSwap<reqwest::Client>,
}

impl Client {
    /// Touches no network.
    ///
    /// # Errors
    /// The settings make no URL, or the system's certificates cannot be read.
    pub fn new(settings: &config::S3) -> io::Result<Client> {
        let region = settings.region.clone().unwrap_or_else(|| region_of(&settings.endpoint));
        let place = Place::new(
            settings.endpoint.clone(),
            UrlStyle::Path,
            settings.bucket.clone(),
            region,
        )
        .map_err(|error| io::Error::other(format!("MINIO_ENDPOINT and MINIO_BUCKET make no URL: {error}")))?;
        Ok(Client {
            place,
            credentials: Credentials::new(settings.access_key.reveal(), settings.secret_key.reveal()),
            http: ArcSwap::from_pointee(http(&settings.endpoint)?),
        })
    }

    /// Forgets all connections: after an outage they may lead nowhere, without anybody knowing.
    pub fn reconnect(&self) {
        match http(self.place.base_url()) {
            Ok(new) => self.http.store(Arc::new(new)),
            Err(error) => tracing::debug!(%error, "connections to S3 are kept"),
        }
    }

    pub fn bucket_name(&self) -> &str {
        self.place.name()
    }

    /// The headers of an object; `None`: there is none.
    pub async fn head(&self, object: &str) -> Result<Option<HeaderMap>, Failure> {
        let action = self.place.head_object(Some(&self.credentials), object);
        match self
            .ask(Method::HEAD, action.sign(SIGNED_FOR), HeaderMap::new(), Body::default())
            .await
        {
            Ok(response) => Ok(Some(response.headers().clone())),
            // Some say in a header that it is not this object that is missing.
            Err(failure) if failure.is_missing_bucket() => Err(failure),
            Err(Failure::Refused { status: 404, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The answer to a GET with these headers, its body unread.
    pub async fn get(&self, object: &str, headers: HeaderMap) -> Result<Response, Failure> {
        let action = self.place.get_object(Some(&self.credentials), object);
        self.ask(Method::GET, action.sign(SIGNED_FOR), headers, Body::default())
            .await
    }

    /// Stores an object with these headers. The body has `length` bytes.
    pub async fn put(&self, object: &str, about: &[(String, String)], length: u64, body: Body) -> Result<(), Failure> {
        self.put_if(object, about, HeaderMap::new(), length, body).await
    }

    /// [`Client::put`], if what is there meets the `condition` (which is not signed: a proxy that takes it off is trusted
    /// with the object anyway).
    pub async fn put_if(
        &self,
        object: &str,
        about: &[(String, String)],
        condition: HeaderMap,
        length: u64,
        body: Body,
    ) -> Result<(), Failure> {
        let mut action = self.place.put_object(Some(&self.credentials), object);
        let mut headers = signed(action.headers_mut(), about)?;
        headers.extend(condition);
        headers.insert(header::CONTENT_LENGTH, length.into());
        self.ask(Method::PUT, action.sign(SIGNED_FOR), headers, body).await?;
        Ok(())
    }

    /// Removes an object. That there was none is as good.
    pub async fn delete(&self, object: &str) -> Result<(), Failure> {
        let action = self.place.delete_object(Some(&self.credentials), object);
        match self
            .ask(
                Method::DELETE,
                action.sign(SIGNED_FOR),
                HeaderMap::new(),
                Body::default(),
            )
            .await
        {
            Ok(_) => Ok(()),
            Err(Failure::Refused { code, .. }) if code == "NoSuchKey" => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// A page of what lies under the prefix; `most` entries at most, `next` from the page before.
    pub async fn list(&self, most: usize, next: Option<&str>) -> Result<Page, Failure> {
        let mut action = self.place.list_objects_v2(Some(&self.credentials));
        action.with_prefix(PREFIX);
        action.with_max_keys(most);
        if let Some(next) = next {
            action.with_continuation_token(next);
        }
        let answer = self
            .ask_text(Method::GET, action.sign(SIGNED_FOR), HeaderMap::new(), Body::default())
            .await?;
        let parsed = ListObjectsV2::parse_response(&answer).map_err(|error| Failure::Nonsense(error.to_string()))?;
        let objects = parsed
            .contents
            .into_iter()
            .filter(|entry| entry.key.starts_with(PREFIX));
        Ok(Page {
            objects: objects
                .map(|entry| Listed {
                    length: entry.size.unwrap_or(0),
                    object: entry.key,
                })
                .collect(),
            next: parsed.next_continuation_token,
        })
    }

    /// Whether the bucket can be read.
    pub async fn ping(&self) -> Result<(), Failure> {
        self.list(1, None).await.map(|_| ())
    }

    /// Makes the bucket. That it is there already is as good.
    pub async fn create_bucket(&self) -> Result<(), Failure> {
        let action = self.place.create_bucket(&self.credentials);
        match self
            .ask(
                Method::PUT,
                action.sign(SIGNED_FOR),
                HeaderMap::new(),
                action.body().into(),
            )
            .await
        {
            Ok(_) => Ok(()),
            Err(Failure::Refused { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Begins an upload of several parts; its id.
    pub async fn begin(&self, object: &str, about: &[(String, String)]) -> Result<String, Failure> {
        let mut action = self.place.create_multipart_upload(Some(&self.credentials), object);
        let headers = signed(action.headers_mut(), about)?;
        let answer = self
            .ask_text(Method::POST, action.sign(SIGNED_FOR), headers, Body::default())
            .await?;
        CreateMultipartUpload::parse_response(&answer)
            .map(|parsed| parsed.upload_id().to_owned())
            .map_err(|error| Failure::Nonsense(error.to_string()))
    }

    /// Uploads a part, counted from 1; its entity tag.
    pub async fn part(
        &self,
        object: &str,
        upload: &str,
        part: u16,
        length: u64,
        body: Body,
    ) -> Result<String, Failure> {
        let action = UploadPart::new(&self.place, Some(&self.credentials), object, part, upload);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, length.into());
        let response = self.ask(Method::PUT, action.sign(SIGNED_FOR), headers, body).await?;
        let etag = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok());
        etag.map(str::to_owned)
            .ok_or_else(|| Failure::Nonsense("a part got no entity tag".to_owned()))
    }

    /// Makes the object of its parts.
    pub async fn complete(&self, object: &str, upload: &str, etags: &[String]) -> Result<(), Failure> {
        self.complete_if(object, upload, etags, HeaderMap::new()).await
    }

    /// [`Client::complete`], if what is there meets the `condition`.
    pub async fn complete_if(
        &self,
        object: &str,
        upload: &str,
        etags: &[String],
        condition: HeaderMap,
    ) -> Result<(), Failure> {
        let etags = etags.iter().map(String::as_str);
        let action = CompleteMultipartUpload::new(&self.place, Some(&self.credentials), object, upload, etags);
        let url = action.sign(SIGNED_FOR);
        let answer = self
            .ask_text(Method::POST, url, condition, action.body().into())
            .await?;
        // The answer begins before it is known how it ends, so a 200 may say that it failed.
        match element(&answer, "Code") {
            Some(code) => Err(Failure::Refused {
                status: if code == "PreconditionFailed" { 412 } else { 500 },
                code,
                message: element(&answer, "Message").unwrap_or_default(),
            }),
            None => Ok(()),
        }
    }

    /// Gives up an upload of several parts. That it is not known is as good.
    pub async fn abort(&self, object: &str, upload: &str) -> Result<(), Failure> {
        let action = self
            .place
            .abort_multipart_upload(Some(&self.credentials), object, upload);
        match self
            .ask(
                Method::DELETE,
                action.sign(SIGNED_FOR),
                HeaderMap::new(),
                Body::default(),
            )
            .await
        {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_missing_upload() => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Uploads of several parts that have not ended, of names that begin with `prefix`: the first thousand. (MinIO lists
    /// those of a whole name only, and removes by itself what is older than a day.)
    pub async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, Failure> {
        // The crate has no such action; this one asks the same resource with other words.
        let mut action = self.place.list_objects_v2(Some(&self.credentials));
        let query = action.query_mut();
        query.remove("list-type");
        query.insert("uploads", "");
        query.insert("prefix", prefix);
        let answer = self
            .ask_text(Method::GET, action.sign(SIGNED_FOR), HeaderMap::new(), Body::default())
            .await?;
        let encoded = element(&answer, "EncodingType").is_some();
        let entries = answer.split("<Upload>").skip(1);
        let found = entries.filter_map(|entry| {
            let object = element(entry, "Key")?;
            let object = if encoded { form_decoded(&object) } else { object };
            Some(Unfinished {
                upload: element(entry, "UploadId")?,
                initiated: element(entry, "Initiated").unwrap_or_default(),
                object,
            })
        });
        Ok(found.filter(|entry| entry.object.starts_with(prefix)).collect())
    }

    async fn ask_text(&self, method: Method, url: Url, headers: HeaderMap, body: Body) -> Result<String, Failure> {
        let response = self.ask(method, url, headers, body).await?;
        let answer = whole(response).await?;
        String::from_utf8(answer).map_err(|_| Failure::Nonsense("it is not UTF-8".to_owned()))
    }

    /// Asks, and makes every status but 2xx a failure.
    async fn ask(&self, method: Method, url: Url, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
        let http = self.http.load_full();
        let asked = http.request(method, url).headers(headers).body(body).send().await;
        let response = asked.map_err(|error| Failure::Unreachable(told(error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refused(response).await)
    }
}

async fn refused(response: Response) -> Failure {
    let status = response.status();
    // MinIO says in headers what an answer to HEAD cannot say.
    let said = |name: &str| {
        let value = response.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let (code, message) = (said("x-minio-error-code"), said("x-minio-error-desc"));
    let redirected = status.is_redirection();
    let text = String::from_utf8(whole(response).await.unwrap_or_default()).unwrap_or_default();
    let mut message = message.or_else(|| element(&text, "Message")).unwrap_or_default();
    if redirected && message.is_empty() {
        message = "the bucket is somewhere else: name its own endpoint in MINIO_ENDPOINT".to_owned();
    }
    Failure::Refused {
        status: status.as_u16(),
        code: short(&code.or_else(|| element(&text, "Code")).unwrap_or_default()),
        message: short(message.trim_matches('"')),
    }
}

async fn whole(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    while let Some(piece) = response
        .chunk()
        .await
        .map_err(|error| Failure::Unreachable(told(error)))?
    {
        if all.len() + piece.len() > MAX_ANSWER {
            return Err(Failure::Nonsense("it is too long".to_owned()));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// What an error says, and what is behind it; never the URL, which is signed.
pub fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = error.source();
    }
    text
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect()
}

/// Adds headers to those that are signed, and gives them to be sent.
fn signed<'a>(map: &mut Map<'a>, about: &'a [(String, String)]) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for (name, value) in about {
        let nonsense = || Failure::Nonsense(format!("the header {name} cannot be sent"));
        map.insert(name.as_str(), value.as_str());
        headers.insert(
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| nonsense())?,
            HeaderValue::from_str(value).map_err(|_| nonsense())?,
        );
    }
    Ok(headers)
}

/// The text of the first element of this name. Answers of S3 services are too alike, and their namespaces too unlike,
/// for more.
fn element(xml: &str, name: &str) -> Option<String> {
    let start = xml.find(&format!("<{name}>"))? + name.len() + 2;
    let end = start + xml[start..].find(&format!("</{name}>"))?;
    let text = xml[start..end].trim();
    let replaced = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    let replaced = replaced
        .replace("&#34;", "\"")
        .replace("&#39;", "'")
        .replace("&apos;", "'");
    Some(replaced.replace("&amp;", "&"))
}

fn form_decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " "))
        .decode_utf8_lossy()
        .into_owned()
}

/// The region in the name of an AWS host (`s3.eu-west-1.amazonaws.com`), and what everybody else calls theirs.
fn region_of(endpoint: &Url) -> String {
    let host = endpoint.host_str().unwrap_or("").to_ascii_lowercase();
    let aws = host
        .strip_suffix(".amazonaws.com")
        .or_else(|| host.strip_suffix(".amazonaws.com.cn"));
    let region = aws.and_then(|name| name.strip_prefix("s3.").or_else(|| name.strip_prefix("s3-")));
    let region = region.map(|region| region.strip_prefix("dualstack.").unwrap_or(region));
    let region = region.filter(|region| region.contains('-') && !region.contains('.'));
    region.unwrap_or("us-east-1").to_owned()
}

fn http(endpoint: &Url) -> io::Result<reqwest::Client> {
    // Only the first choice in a process counts, and all choose this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_LIMIT)
        .pool_idle_timeout(IDLE_LIMIT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .tcp_nodelay(true);
    if endpoint.scheme() == "http" {
        // A machine without certificates needs none for this.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| io::Error::other(told(error)))
}

/// Whether a GET was answered with just the bytes from `start` on.
pub(super) fn starts_at(response: &Response, start: u64) -> bool {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return start == 0;
    }
    let range = response.headers().get(header::CONTENT_RANGE);
    let range = range.and_then(|value| value.to_str().ok()?.strip_prefix("bytes "));
    range.and_then(|range| range.split('-').next()?.parse().ok()) == Some(start)
}

/// A piece of a body, or `None` at its end.
pub(super) async fn piece(response: &mut Response) -> Result<Option<Bytes>, Failure> {
    response
        .chunk()
        .await
        .map_err(|error| Failure::Unreachable(told(error)))
}

/// Waits for an answer for `limit`.
///
/// # Errors
/// Those of `asked`; or there was no answer.
pub(super) async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let answer = tokio::time::timeout(limit, asked).await;
    answer.unwrap_or_else(|_| Err(Failure::Unreachable(format!("no answer within {limit:?}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions() {
        let region = |host: &str| region_of(&Url::parse(&format!("https://{host}/")).unwrap());
        for (host, expected) in [
            ("s3.eu-west-1.amazonaws.com", "eu-west-1"),
            ("s3-eu-west-1.amazonaws.com", "eu-west-1"),
            ("s3.dualstack.ap-south-1.amazonaws.com", "ap-south-1"),
            ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("s3.amazonaws.com", "us-east-1"),
            ("minio:9000", "us-east-1"),
            ("127.0.0.1", "us-east-1"),
        ] {
            assert_eq!(region(host), expected, "{host}");
        }
    }

    #[test]
    fn elements() {
        let xml = "<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code><Message>It&apos;s &lt;no&gt; &amp;amp;</Message></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("AccessDenied"));
        assert_eq!(element(xml, "Message").as_deref(), Some("It's <no> &amp;"));
        assert_eq!(element(xml, "Resource"), None);
        assert_eq!(element("<Code>", "Code"), None);
        assert_eq!(form_decoded("artifactapi/a+b%2Bc%21"), "artifactapi/a b+c!");
    }

    #[test]
    fn failures_say_what_the_service_said() {
        let refused = |status, code: &str, message: &str| Failure::Refused {
            status,
            code: code.to_owned(),
            message: message.to_owned(),
        };
        let denied = refused(403, "AccessDenied", "No.");
        assert_eq!(denied.to_string(), "HTTP 403 AccessDenied: No.");
        assert_eq!(refused(502, "", "").to_string(), "HTTP 502");
        assert!(!denied.is_of_service() && refused(503, "SlowDown", "").is_of_service());
        assert!(refused(404, "NoSuchBucket", "").is_missing_bucket());
    }
}
