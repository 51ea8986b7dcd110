//! Requests that this process makes of itself, with no socket between: by the one path of every client's request, so that
//! policies, quarantine, verification and errors are those that every client meets.
//!
//! Such a request has no peer: nothing takes it for one of a program of this machine, and what it may do is what its
//! `Authorization` says.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Serves the other end of a connection.
type Serve = Box<dyn Fn(DuplexStream) + Send + Sync>;

/// What waits between the two ends of a connection, in bytes.
const PIPE: usize = 64 << 10;
/// The longest silence: what asks upstream has shorter limits of its own, and may have to wait for its turn.
const SILENCE: Duration = Duration::from_secs(600);

/// The way in. Opened by what serves clients, when that is set up.
#[derive(Default)]
pub struct InProcess(OnceLock<Serve>);

/// A GET.
pub struct Question {
    /// Path and query, in origin form.
    pub target: String,
    /// The value of `Host`.
    pub host: String,
    pub accept: Option<String>,
    pub authorization: Option<HeaderValue>,
}

/// An answer, whose body comes in pieces. The connection ends when this is dropped.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    _connection: Connection,
}

struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why there is no answer, or not all of one.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("it cannot be asked for: {0}")]
    Unaskable(String),
    #[error("the service does not answer requests now")]
    Closed,
    #[error("nothing came for {} seconds", SILENCE.as_secs())]
    Silent,
    #[error("the transfer was cut: {0}")]
    Cut(String),
}

impl Failure {
    fn cut(error: &hyper::Error) -> Failure {
        let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
        Failure::Cut(format!("{error}{cause}"))
    }
}

impl InProcess {
    /// From now on `serve` gets the connections.
    pub fn open(&self, serve: impl Fn(DuplexStream) + Send + Sync + 'static) {
        // Only the first one counts: there is one in a process.
        let _ = self.0.set(Box::new(serve));
    }

    /// Asks, and waits for the header of the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn get(&self, question: Question) -> Result<Answer, Failure> {
        let serve = self.0.get().ok_or(Failure::Closed)?;
        let mut request = Request::get(&question.target)
            .header(header::HOST, question.host)
            .header(header::CONNECTION, "close");
        if let Some(accept) = question.accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(authorization) = question.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request
            .body(String::new())
            .map_err(|error| Failure::Unaskable(error.to_string()))?;
        let (here, there) = tokio::io::duplex(PIPE);
        serve(there);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(here))
            .await
            .map_err(|error| Failure::cut(&error))?;
        let connection = Connection(tokio::spawn(async move {
            // Whoever reads the answer sees the error, too.
            let _ = connection.await;
        }));
        let answer = timeout(SILENCE, sender.send_request(request)).await;
        let answer = answer
            .map_err(|_| Failure::Silent)?
            .map_err(|error| Failure::cut(&error))?;
        let (head, body) = answer.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
            _connection: connection,
        })
    }
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// The body ends early.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = timeout(SILENCE, self.body.frame()).await;
            match frame.map_err(|_| Failure::Silent)? {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::cut(&error)),
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn question() -> Question {
        Question {
            target: "/a?b".to_owned(),
            host: "cache.test".to_owned(),
            accept: Some("text/plain".to_owned()),
            authorization: Some(HeaderValue::from_static("Bearer t")),
        }
    }

    /// The way in to whoever answers with `answer`, and what it was asked.
    fn answering(answer: &'static str) -> (InProcess, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let way = InProcess::default();
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        way.open(move |mut stream| {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                tell.send(String::from_utf8(head).unwrap()).unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        });
        (way, told)
    }

    #[tokio::test]
    async fn a_question_is_a_request_and_its_answer_has_an_end() {
        let (way, mut told) = answering("HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 3\r\n\r\nabc");
        let mut answer = way.get(question()).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["x-a"]),
            (200, &HeaderValue::from_static("b"))
        );
        assert_eq!(answer.piece().await.unwrap().unwrap(), "abc");
        assert!(answer.piece().await.unwrap().is_none());
        let asked = told.recv().await.unwrap().to_lowercase();
        assert!(asked.starts_with("get /a?b http/1.1\r\n"), "{asked}");
        for line in [
            "host: cache.test",
            "accept: text/plain",
            "authorization: bearer t",
            "connection: close",
        ] {
            assert!(asked.contains(&format!("{line}\r\n")), "{asked}");
        }
    }

    #[tokio::test]
    async fn a_body_that_ends_early_is_an_error() {
        let (way, _told) = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        let mut answer = way.get(question()).await.unwrap();
        assert_eq!(answer.piece().await.unwrap().unwrap(), "abc");
        assert!(matches!(answer.piece().await, Err(Failure::Cut(_))));
        let (way, _told) = answering("");
        assert!(matches!(way.get(question()).await, Err(Failure::Cut(_))));
        assert!(matches!(
            InProcess::default().get(question()).await,
            Err(Failure::Closed)
        ));
        let target = "a b".to_owned();
        let unaskable = way.get(Question { target, ..question() }).await;
        assert!(matches!(unaskable, Err(Failure::Unaskable(_))));
    }
}
