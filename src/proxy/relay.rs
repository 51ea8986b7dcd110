//! Upstream's answers that are not stored, passed on.

use http::{HeaderName, HeaderValue, header};
use pingora_error::Result;
use pingora_proxy::Session;

use super::dress::{self, Shown};
use super::resolve::Resolved;
use crate::fill::Answer;
use crate::headers;
use crate::session::reply::{self, Problem};

/// Passes on an answer that is not stored. An error gets a body of ours: upstream's is a page of its own for browsers,
/// or names upstream's addresses.
///
/// # Errors
/// The client is gone.
pub(super) async fn answer(
    session: &mut Session,
    resolved: &Resolved,
    answer: &Answer,
    (source, cache_status): (&'static str, &str),
) -> Result<()> {
    if answer.status >= 400 {
        let detail = match &answer.reason {
            Some(reason) => reason.clone(),
            None => upstream_said(answer.status),
        };
        let status = resolved.format.status_of(answer.status);
        let mut error = Problem::new(status, detail).at(&resolved.remote.name, &resolved.path.encoded);
        error.headers = vec![
            (HeaderName::from_static("cache-status"), cache_status.to_owned()),
            (HeaderName::from_static("x-artifact-source"), source.to_owned()),
        ];
        let limits = headers::limits(&answer.headers);
        let limits = limits.filter_map(|(name, value)| Some((name.clone(), value.to_str().ok()?.to_owned())));
        error.headers.extend(limits);
        if let Some(retry_after) = &answer.retry_after {
            error.headers.push((header::RETRY_AFTER, retry_after.clone()));
        }
        return reply::problem(session, Some(resolved.format), error).await;
    }
    let shown = Shown::of(resolved);
    let mut response = dress::of_content(answer.status, &answer.headers, &shown, false)?;
    let no_store = HeaderValue::from_static("no-store");
    dress::finish(&mut response, &shown, (source, headers::value(cache_status)), no_store)?;
    if let Some(retry_after) = &answer.retry_after {
        response.insert_header(header::RETRY_AFTER, headers::value(retry_after))?;
    }
    reply::write(session, response, answer.body.clone()).await
}

fn upstream_said(status: u16) -> String {
    let reason = http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("");
    let hint = match status {
        401 => "; set `username` and `password` on the remote, or correct them",
        403 => "; upstream refuses it to this proxy",
        407 => "; the outbound proxy wants credentials in its URL",
        429 => "; upstream limits requests, try again later",
        _ => "",
    };
    format!("upstream answered {status} {reason}{hint}")
}
