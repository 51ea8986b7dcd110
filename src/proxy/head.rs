//! HEAD that is answered from a header alone: upstream's to a HEAD, or what a name is known by.

use http::{HeaderMap, header};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::artifact::{Origin, Request, vary};
use super::{Client, range};
use crate::fill::Answer;

impl Client {
    /// A 200 to a HEAD, from a header alone.
    pub(super) async fn answer_head(
        &self,
        session: &mut Session,
        request: &Request,
        headers: &HeaderMap,
        cache_control: &str,
        origin: &Origin,
    ) -> Result<bool> {
        let mut response = ResponseHeader::build(200, Some(headers.len() + 8))?;
        for (name, value) in headers {
            response.append_header(name.clone(), value.clone())?;
        }
        if !headers.contains_key(header::CONTENT_TYPE) {
            let content_type = request.format.content_type(&request.path.decoded);
            response.insert_header(header::CONTENT_TYPE, content_type)?;
        }
        response.insert_header(header::ACCEPT_RANGES, "bytes")?;
        response.insert_header(header::VIA, "1.1 artifactapi")?;
        response.insert_header("x-artifact-source", origin.source)?;
        response.insert_header("cache-status", &*origin.cache_status)?;
        response.insert_header(header::CACHE_CONTROL, cache_control)?;
        if let Some(vary) = vary(request, false) {
            response.insert_header(header::VARY, vary)?;
        }
        let (etag, modified) = (headers.get(header::ETAG), headers.get(header::LAST_MODIFIED));
        let text = |value: Option<&http::HeaderValue>| value.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let condition = range::evaluate(
            &session.req_header().headers,
            text(etag).as_deref(),
            text(modified).as_deref(),
        );
        match condition {
            range::Condition::NotModified => {
                response.set_status(304)?;
                response.remove_header(&header::CONTENT_LENGTH);
            }
            range::Condition::Failed => response.set_status(412)?,
            range::Condition::Pass => {}
        }
        session.write_response_header(Box::new(response), true).await?;
        Ok(true)
    }
}

/// Whether upstream's answer to a HEAD tells what a GET's header would.
pub(super) fn head_is_enough(answer: &Answer) -> bool {
    answer.status == 200 && answer.headers.contains_key(header::CONTENT_LENGTH)
}

/// A signed URL is often good for GET only, and a 200 without a length tells too little: a fill's header answers.
pub(super) fn head_must_be_get(answer: &Answer) -> bool {
    answer.reason.is_none() && matches!(answer.status, 200 | 400 | 403 | 405 | 501)
}
