//! Answers that are not artifacts: errors in the ecosystem's form or ours, JSON, redirects.

use bytes::Bytes;
use http::{HeaderName, Method, header};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use serde_json::json;

use super::writing::Reading;
use crate::formats::Format;
use crate::headers;
use crate::secrets::hidden;

/// An error for a person: what failed, for which remote and path, what to do.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    pub status: u16,
    pub detail: String,
    pub remote: Option<String>,
    pub path: Option<String>,
    pub headers: Vec<(HeaderName, String)>,
}

impl Problem {
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        Problem {
            status,
            detail: detail.into(),
            ..Problem::default()
        }
    }

    pub fn at(mut self, remote: &str, path: &str) -> Self {
        self.remote = Some(remote.to_owned());
        self.path = Some(path.to_owned());
        self
    }

    pub fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Sends `problem`, in the form of `format` where that has one.
///
/// # Errors
/// The client is gone.
pub async fn problem(session: &mut Session, format: Option<&dyn Format>, mut problem: Problem) -> Result<()> {
    problem.detail = hidden(&problem.detail).into_owned();
    let (content_type, body) = format
        .and_then(|format| format.error_body(problem.status, &described(&problem), problem.path.as_deref()))
        .unwrap_or_else(|| {
            let body = json!({"detail": problem.detail, "remote": problem.remote, "path": problem.path});
            ("application/json", body.to_string())
        });
    let mut headers = vec![
        (header::CONTENT_TYPE, content_type.to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    if let Some(warning) = format.and_then(|format| format.warning(problem.status, &problem.detail)) {
        headers.push((header::WARNING, warning));
    }
    headers.extend(problem.headers);
    send(session, problem.status, headers, body.into()).await
}

/// The detail with remote and path, for forms that have one text only.
fn described(problem: &Problem) -> String {
    match (&problem.remote, &problem.path) {
        (Some(remote), Some(path)) => format!("{} (remote {remote}, path {path})", problem.detail),
        _ => problem.detail.clone(),
    }
}

/// Sends JSON.
///
/// # Errors
/// The client is gone.
pub async fn json(session: &mut Session, status: u16, value: &serde_json::Value) -> Result<()> {
    let mut body = value.to_string();
    body.push('\n');
    let headers = vec![
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    send(session, status, headers, body.into()).await
}

/// Sends a body that is in memory; to a HEAD its header only.
///
/// # Errors
/// The client is gone.
pub async fn send(session: &mut Session, status: u16, headers: Vec<(HeaderName, String)>, body: Bytes) -> Result<()> {
    let mut response = ResponseHeader::build(status, Some(headers.len() + 4))?;
    response.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    for (name, value) in headers {
        response.insert_header(name, headers::value(&value))?;
    }
    write(session, response, body).await
}

/// Sends `response` with `body`, which is in memory; to a HEAD its header only.
///
/// # Errors
/// The client is gone.
pub async fn write(session: &mut Session, mut response: ResponseHeader, body: Bytes) -> Result<()> {
    let status = response.status.as_u16();
    // RFC 9110 section 8.6: a 204 has none.
    if status != 204 {
        response.insert_header(header::CONTENT_LENGTH, body.len())?;
    }
    let header_only = session.req_header().method == Method::HEAD || status == 304 || status == 204 || body.is_empty();
    session.write_response_header(Box::new(response), header_only).await?;
    if !header_only {
        Reading { session }.write_whole(body).await?;
    }
    Ok(())
}
