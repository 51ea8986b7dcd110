//! The request that is sent, whatever Pingora prepared.

use std::time::Instant;

use http::{HeaderName, HeaderValue, header};
use pingora_error::Result;
use pingora_http::RequestHeader;

use super::{Authority, Exchange};
use crate::on_behalf;
use crate::upstream::trust::same_origin;
use crate::upstream::tunnel;

impl Exchange {
    /// For `upstream_request_filter`: replaces whatever request Pingora prepared by the one to be sent. Nothing of a
    /// client's request survives but what [`super::Ask`] names.
    ///
    /// # Errors
    /// A header that cannot be built.
    pub fn write_request(&mut self, request: &mut RequestHeader) -> Result<()> {
        let names: Vec<HeaderName> = request.headers.keys().cloned().collect();
        for name in names {
            let kept = self.ask.conditional && (name == header::IF_NONE_MATCH || name == header::IF_MODIFIED_SINCE);
            if !kept {
                request.remove_header(&name);
            }
        }
        request.set_method(self.ask.method.clone());
        let mut target = self.url.path().to_owned();
        if let Some(query) = self.query.as_deref().or(self.url.query()) {
            target.push('?');
            target.push_str(query);
        }
        let host = match (self.url.host_str(), self.url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let proxy = self.upstream.proxy_for(&self.remote, &self.url);
        if let (Some(proxy), "http") = (proxy, self.url.scheme()) {
            target = format!("http://{host}{target}");
            let authorization = tunnel::authorization(proxy).map(HeaderValue::try_from);
            if let Some(Ok(mut authorization)) = authorization {
                authorization.set_sensitive(true);
                request.insert_header(header::PROXY_AUTHORIZATION, authorization)?;
            }
        }
        request.set_raw_path(target.as_bytes())?;
        request.insert_header(header::HOST, host)?;
        request.insert_header(header::USER_AGENT, &self.upstream.user_agent)?;
        request.insert_header(header::ACCEPT, self.ask.accept.unwrap_or("*/*"))?;
        request.insert_header(header::ACCEPT_ENCODING, if self.ask.gzip { "gzip" } else { "identity" })?;
        request.insert_header(header::VIA, "1.1 artifactapi")?;
        if let Some(id) = &self.request_id {
            request.insert_header(on_behalf::FIELD, id.header())?;
        }
        for (name, value) in &self.ask.headers {
            request.insert_header(name.clone(), value.clone())?;
        }
        if let Authority::TokenService(service, Some(credentials)) = &self.authority
            && same_origin(service, &self.url)
        {
            request.insert_header(header::AUTHORIZATION, credentials.clone())?;
        } else if self.may_have_credentials() {
            if let Some(authorization) = &self.authorization {
                request.insert_header(header::AUTHORIZATION, authorization.clone())?;
            }
            for (name, value) in &self.remote.headers {
                request.insert_header(name.clone(), value.clone())?;
            }
        }
        self.asked = Some(Instant::now());
        self.deadline.set(self.remote.timeouts.first_byte);
        Ok(())
    }
}
