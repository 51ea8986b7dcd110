//! HEAD that is answered from a header alone: upstream's to a HEAD, or what a name is known by.

use http::{HeaderMap, header};
use pingora_error::Result;
use pingora_proxy::Session;

use super::dress::{self, Shown};
use super::provenance::Provenance;
use super::request::Request;
use super::{Client, range};
use crate::fill::Answer;
use crate::headers;
use crate::status::may_refuse_head;

impl Client {
    /// A 200 to a HEAD, from a header alone; `headers` may tell length and age besides what is kept of upstream's.
    pub(super) async fn answer_head(
        &self,
        session: &mut Session,
        request: &Request,
        headers: &HeaderMap,
        cache_control: &str,
        origin: &Provenance,
    ) -> Result<bool> {
        let shown = Shown::of(request);
        let mut response = dress::of_content(200, headers, &shown, false)?;
        let cache_status = headers::value(&origin.cache_status);
        let cache_control = headers::value(cache_control);
        dress::finish(&mut response, &shown, (origin.source, cache_status), cache_control)?;
        for name in [header::CONTENT_LENGTH, header::AGE] {
            if let Some(value) = headers.get(&name) {
                response.insert_header(name, value.clone())?;
            }
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

/// Whether upstream's answer to a HEAD tells what a GET's header would: of content in a coding only its bytes do.
pub(super) fn head_is_enough(answer: &Answer) -> bool {
    let is_coded = answer.headers.contains_key(header::CONTENT_ENCODING);
    answer.status == 200 && answer.headers.contains_key(header::CONTENT_LENGTH) && !is_coded
}

/// Whether a fill's header answers a HEAD: upstream refused the method, or its 200 is not [enough](head_is_enough).
pub(super) fn head_must_be_get(answer: &Answer) -> bool {
    answer.reason.is_none() && (answer.status == 200 || may_refuse_head(answer.status))
}
