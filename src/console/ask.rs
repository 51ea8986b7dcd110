//! Asking a running instance.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Method, Response};
use serde_json::Value;
use url::Url;

use super::Common;
use super::show::cell;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// An explanation may wait for an index of upstream's, a flush for a catalogue.
const LIMIT: Duration = Duration::from_secs(120);
/// Silence in an answer that comes bit by bit; the instance says something every quarter of a minute.
const SILENCE: Duration = Duration::from_secs(120);
/// Longest answer that is read, in bytes.
const LONGEST: usize = 64 << 20;

/// Where an instance is that was started without settings.
pub(super) const USUAL: &str = "http://127.0.0.1:8000";

/// The URL of an instance; an empty variable is none.
///
/// # Errors
/// The text is no URL of a web server.
pub(super) fn instance(text: &str) -> Result<Url, String> {
    let url = Url::parse(if text.is_empty() { USUAL } else { text }).map_err(|error| error.to_string())?;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    is_web
        .then_some(url)
        .ok_or_else(|| "write http://HOST:PORT, or https://…".to_owned())
}

/// A question to the instance.
pub(super) struct Question {
    pub method: Method,
    pub path: String,
    pub query: Vec<(&'static str, String)>,
    pub body: Option<Value>,
}

impl Question {
    pub(super) fn get(path: impl Into<String>, query: Vec<(&'static str, String)>) -> Question {
        Question {
            method: Method::GET,
            path: path.into(),
            query,
            body: None,
        }
    }
}

/// A running instance.
pub(super) struct Instance {
    client: Client,
    url: Url,
    token: Option<String>,
}

impl Instance {
    /// # Errors
    /// The system's certificates cannot be used.
    pub(super) fn new(common: &Common) -> Result<Instance, String> {
        // Only the first one counts; all are the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // What goes through a proxy does not come from this machine.
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE)
            .build()
            .map_err(|error| error.to_string())?;
        let configured = || std::env::var("ARTIFACTAPI_ADMIN_TOKEN").ok();
        let token = common
            .token
            .clone()
            .filter(|token| !token.is_empty())
            .or_else(configured);
        Ok(Instance {
            client,
            url: common.url.clone(),
            token: token.filter(|token| !token.is_empty()),
        })
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// Why there is no answer, for a person.
    pub(super) async fn ask(&self, question: Question) -> Result<Value, String> {
        let asked = async {
            let mut response = self.begin(question).await?;
            let body = self.body(&mut response).await?;
            serde_json::from_slice(&body).map_err(|_| self.stranger(&response))
        };
        let answered = tokio::time::timeout(LIMIT, asked).await;
        answered.unwrap_or_else(|_| {
            Err(format!(
                "{} does not answer within {} seconds",
                self.url,
                LIMIT.as_secs()
            ))
        })
    }

    /// Asks, and gives an answer that says yes, to be read.
    ///
    /// # Errors
    /// Why there is none, for a person.
    pub(super) async fn begin(&self, question: Question) -> Result<Response, String> {
        let query = question.query.iter().map(|(name, value)| {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            format!("{name}={value}")
        });
        let query = query.collect::<Vec<_>>().join("&");
        let base = self.url.as_str().trim_end_matches('/');
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = self
            .client
            .request(question.method, format!("{base}{}{mark}{query}", question.path));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = question.body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        let mut response = request.send().await.map_err(|error| self.away(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let body = self.body(&mut response).await?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        match answer["detail"].is_string() {
            true => Err(format!("{}: {}", response.status().as_u16(), cell(&answer["detail"]))),
            false => Err(self.stranger(&response)),
        }
    }

    async fn body(&self, response: &mut Response) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.away(error))? {
            body.extend_from_slice(&piece);
            if body.len() > LONGEST {
                return Err(format!("{} answers more than {LONGEST} bytes", self.url));
            }
        }
        Ok(body)
    }

    fn stranger(&self, response: &Response) -> String {
        let (url, status) = (&self.url, response.status());
        format!("{url} answers {status}, and is no artifactapi that knows this")
    }

    /// Why there is no answer, or no end of it.
    pub(super) fn away(&self, error: reqwest::Error) -> String {
        let error = error.without_url();
        let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
        let url = &self.url;
        match error.is_body() || error.is_decode() {
            true => format!("the answer of {url} ended early ({error}{cause})"),
            false => format!("{url} is not reached ({error}{cause}); name a running instance with --url"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_named_by_a_url() {
        assert!(instance("https://cache.example/prefix/").is_ok());
        assert_eq!(instance(""), instance(USUAL));
        for bad in ["cache.example", "ftp://cache.example", "localhost:8000"] {
            assert!(instance(bad).is_err(), "{bad}");
        }
    }
}
