//! The work on a list of artifacts: some at a time, each once. What a document leads to is put behind what waits.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use url::Url;

use super::asked::{Asked, MOST_ORDERS, Wanted};
use crate::formats;
use crate::formats::order::{Step, Then};
use crate::in_process::{Answer, Failure, InProcess, Question};
use crate::state::State;

/// Most artifacts of one list, with all that its documents lead to.
const MOST_ARTIFACTS: usize = 4 * MOST_ORDERS;
/// Longest document that is read for what it leads to, in bytes.
const LONGEST_DOCUMENT: usize = 64 << 20;
/// Documents that are in memory at once, of all lists.
static DOCUMENTS: Semaphore = Semaphore::const_new(4);
/// What is read of an error, in bytes.
const LONGEST_ERROR: usize = 64 << 10;
/// Other spellings of a path that lead to the right one.
const MOST_REDIRECTS: usize = 4;

static SOURCE: HeaderName = HeaderName::from_static("x-artifact-source");
static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What became of an artifact.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub remote: String,
    pub path: String,
    pub status: Option<u16>,
    pub source: Option<&'static str>,
    pub bytes: u64,
    pub error: Option<String>,
}

/// A step that has ended.
struct Ended {
    line: Line,
    /// Told before: again only if it failed.
    told: bool,
    further: Vec<Wanted>,
}

/// Asks for artifacts as the client would that sent the list.
#[derive(Clone, Copy)]
struct Asker<'a> {
    in_process: &'a InProcess,
    host: &'a str,
    authorization: Option<&'a HeaderValue>,
}

/// The work that is left, and what runs.
pub(super) struct Work<'a> {
    in_process: &'a InProcess,
    state: &'a State,
    asker: Arc<(String, Option<HeaderValue>)>,
    parallel: usize,
    waiting: VecDeque<Wanted>,
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Ended> + Send + 'a>>>,
    /// Remote, path and `Accept` of all that was begun.
    begun: HashSet<(String, String, Option<&'static str>)>,
    /// All that was put in.
    put_in: usize,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        in_process: &'a InProcess,
        state: &'a State,
        host: String,
        authorization: Option<HeaderValue>,
        asked: Asked,
    ) -> Self {
        Work {
            in_process,
            state,
            asker: Arc::new((host, authorization)),
            parallel: asked.parallel,
            put_in: asked.first.len(),
            waiting: asked.first.into(),
            running: FuturesUnordered::new(),
            begun: HashSet::new(),
        }
    }

    /// What became of the next artifact that ends; `None`: all have. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Line> {
        loop {
            while self.running.len() < self.parallel
                && let Some(wanted) = self.waiting.pop_front()
            {
                self.begin(wanted);
            }
            let Ended {
                mut line,
                told,
                further,
            } = self.running.next().await?;
            if self.put_in + further.len() > MOST_ARTIFACTS {
                line.error = Some(format!(
                    "with what this names there are more than {MOST_ARTIFACTS} artifacts"
                ));
            } else {
                self.put_in += further.len();
                self.waiting.extend(further);
            }
            if !told || line.error.is_some() {
                return Some(line);
            }
        }
    }

    fn begin(&mut self, wanted: Wanted) {
        let Wanted { remote, step } = wanted;
        let Step {
            path,
            accept,
            then,
            refused,
        } = step;
        let told = !self.begun.insert((remote.name.clone(), path.clone(), accept));
        // A document is read again for each that wants something of it.
        if told && then.is_none() {
            return;
        }
        let (in_process, state, asker) = (self.in_process, self.state, Arc::clone(&self.asker));
        self.running.push(Box::pin(async move {
            let (host, authorization) = &*asker;
            let asker = Asker {
                in_process,
                host,
                authorization: authorization.as_ref(),
            };
            let mut line = Line {
                remote: remote.name.clone(),
                path,
                status: None,
                source: None,
                bytes: 0,
                error: None,
            };
            let fetched = match refused {
                Some(why) => Err(why),
                None if state.is_stopping() => Err("this instance is stopping".to_owned()),
                None => asker.fetch(formats::root_of(&remote), &mut line, accept, then).await,
            };
            let further = fetched.unwrap_or_else(|error| {
                line.error = Some(error);
                Vec::new()
            });
            let further = further.into_iter().map(|step| Wanted {
                remote: Arc::clone(&remote),
                step,
            });
            Ended {
                further: further.collect(),
                line,
                told,
            }
        }));
    }
}

impl Asker<'_> {
    /// Fetches the artifact of `line`, and fills that in. Gives what it leads to.
    ///
    /// # Errors
    /// Why it is not cached now, or why what it leads to is not known.
    async fn fetch(
        &self,
        root: &str,
        line: &mut Line,
        accept: Option<&'static str>,
        then: Option<Then>,
    ) -> Result<Vec<Step>, String> {
        let document = match &then {
            Some(_) => Some(DOCUMENTS.acquire().await.map_err(|error| error.to_string())?),
            None => None,
        };
        let target = format!("{root}{}/{}", line.remote, line.path);
        let mut answer = self.ask(target, accept).await?;
        line.status = Some(answer.status.as_u16());
        line.source = source(&answer.headers);
        if answer.status != StatusCode::OK {
            return Err(refusal(&mut answer).await);
        }
        if line.source == Some("remote") && !says(&answer.headers, &CACHE_STATUS, "stored") {
            line.bytes = read(&mut answer, line.bytes).await?;
            return Err("upstream's answer was passed on and not kept".to_owned());
        }
        let Some(then) = then else {
            line.bytes = match is_here(&answer.headers) {
                Some(length) => length,
                None => read(&mut answer, 0).await?,
            };
            return Ok(Vec::new());
        };
        let body = collect(&mut answer, LONGEST_DOCUMENT).await?;
        line.bytes = body.len() as u64;
        let steps = tokio::task::spawn_blocking(move || then(&body)).await;
        drop(document);
        steps.unwrap_or_else(|_| Err("the document could not be read".to_owned()))
    }

    /// Asks, and goes where another spelling of the path is said to be the right one.
    async fn ask(&self, target: String, accept: Option<&'static str>) -> Result<Answer, String> {
        let mut target = target;
        for _ in 0..=MOST_REDIRECTS {
            let question = Question {
                target: target.clone(),
                host: self.host.to_owned(),
                accept: accept.map(str::to_owned),
                authorization: self.authorization.cloned(),
            };
            let answer = self.in_process.get(question).await.map_err(|error| error.to_string())?;
            match redirected(&target, &answer) {
                Some(next) => target = next,
                None => return Ok(answer),
            }
        }
        Err("it is redirected too often".to_owned())
    }
}

/// Where an answer sends its client, if that is here.
fn redirected(target: &str, answer: &Answer) -> Option<String> {
    let location = answer
        .headers
        .get(header::LOCATION)
        .filter(|_| answer.status.is_redirection())?;
    let here = Url::parse("http://here.invalid").ok()?;
    let next = here.join(target).ok()?.join(location.to_str().ok()?).ok()?;
    let is_here = next.origin() == here.origin();
    is_here.then(|| next[url::Position::BeforePath..url::Position::AfterQuery].to_owned())
}

fn source(headers: &HeaderMap) -> Option<&'static str> {
    match headers.get(&SOURCE)?.as_bytes() {
        b"cache" => Some("cache"),
        b"remote" => Some("remote"),
        _ => None,
    }
}

/// Whether a field has this parameter.
fn says(headers: &HeaderMap, name: &HeaderName, parameter: &str) -> bool {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.split(';').any(|part| part.trim() == parameter))
}

/// The length of what is stored here whole: its bytes need not be read.
fn is_here(headers: &HeaderMap) -> Option<u64> {
    let is_hit = says(headers, &CACHE_STATUS, "hit") && !says(headers, &CACHE_STATUS, "detail=shared");
    let length = headers.get(header::CONTENT_LENGTH).filter(|_| is_hit)?;
    length.to_str().ok()?.parse().ok()
}

/// Reads a body to its end. Gives its length.
async fn read(answer: &mut Answer, mut bytes: u64) -> Result<u64, String> {
    let cut = |error: Failure, bytes: u64| format!("{error} after {bytes} bytes; the log of this instance says why");
    while let Some(piece) = answer.piece().await.map_err(|error| cut(error, bytes))? {
        bytes += piece.len() as u64;
    }
    Ok(bytes)
}

async fn collect(answer: &mut Answer, longest: usize) -> Result<Bytes, String> {
    let mut body = BytesMut::new();
    while let Some(piece) = answer.piece().await.map_err(|error| error.to_string())? {
        if body.len() + piece.len() > longest {
            return Err(format!(
                "the document is longer than {longest} bytes, and is not read for what it names"
            ));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// What an error answer says, in whichever form its clients read.
async fn refusal(answer: &mut Answer) -> String {
    let status = answer.status;
    let body = collect(answer, LONGEST_ERROR).await.unwrap_or_default();
    let read: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = [
        &read["detail"],
        &read["error"],
        &read["errors"][0]["message"],
        &read["errors"][0]["detail"],
    ];
    match said.into_iter().find_map(Value::as_str) {
        Some(said) => said.to_owned(),
        None => format!("the answer is {status}"),
    }
}
