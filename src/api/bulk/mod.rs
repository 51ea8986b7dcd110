//! `POST /api/v1/artifacts`: artifacts are brought into the cache before anybody asks for them, and what becomes of each is
//! told as it ends.

mod asked;
mod work;

use std::time::Duration;

use bytes::Bytes;
use http::{Version, header};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use serde::Serialize;
use tokio::sync::Semaphore;
use url::Url;

use self::asked::Asked;
use self::work::{Line, Work};
use super::Api;
use super::access::{self, Need};
use crate::config::{Config, Remote};
use crate::session::reply::{self, Problem};
use crate::session::writing::Reading;
use crate::session::{body, public};

/// Longest body: lock files have some megabytes.
const MAX_BODY: usize = 16 << 20;
/// Such requests that are worked on at once.
const MOST: usize = 8;
static WORKING: Semaphore = Semaphore::const_new(MOST);
/// After this long without a line, a space is sent: whoever stands between does not take the connection for dead, and JSON may
/// begin with spaces.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The last line.
#[derive(Default, Serialize)]
struct Done {
    done: bool,
    total: u64,
    cached: u64,
    fetched: u64,
    failed: u64,
    bytes: u64,
}

impl Done {
    fn count(&mut self, line: &Line) {
        self.total += 1;
        self.bytes += line.bytes;
        match (&line.error, line.source) {
            (Some(_), _) | (None, None) => self.failed += 1,
            (None, Some("cache")) => self.cached += 1,
            (None, Some(_)) => self.fetched += 1,
        }
    }
}

impl Api {
    pub(super) async fn bulk(&self, session: &mut Session, config: &Config) -> Result<()> {
        if let Err(problem) = access::check(session, config, Need::WriteSome) {
            return reply::problem(session, None, problem).await;
        }
        let Ok(_working) = WORKING.try_acquire() else {
            let detail = format!("{MOST} lists of artifacts are being cached already; try again");
            let problem = Problem::new(503, detail).header(header::RETRY_AFTER, "30");
            return reply::problem(session, None, problem).await;
        };
        let body = match body::read(session, MAX_BODY, &body::BULK, &config.settings.clients).await? {
            Ok(body) => body,
            Err(problem) => return reply::problem(session, None, problem).await,
        };
        let config = self.state.config();
        // Megabytes of lock files take their time.
        let read = tokio::task::spawn_blocking(move || Asked::read(&config, &body.bytes)).await;
        let asked = match read.unwrap_or_else(|_| Err("the process ends".to_owned())) {
            Ok(asked) => asked,
            Err(detail) => return reply::problem(session, None, Problem::new(400, detail)).await,
        };
        let remotes: Vec<&Remote> = asked.first.iter().map(|wanted| &*wanted.remote).collect();
        if let Err(problem) = may_write(session, &self.state.config(), remotes) {
            return reply::problem(session, None, problem).await;
        }
        let work = Work::new(
            &self.in_process,
            &self.state,
            host(session, &self.state.config()),
            session.req_header().headers.get(header::AUTHORIZATION).cloned(),
            asked,
        );
        tell(session, work).await
    }
}

/// Whether the client may have things cached for each of the remotes.
fn may_write(session: &Session, config: &Config, mut remotes: Vec<&Remote>) -> std::result::Result<(), Problem> {
    remotes.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    remotes.dedup_by(|one, other| one.name == other.name);
    let mut needs = remotes.into_iter().map(Need::Write);
    needs.try_for_each(|need| access::check(session, config, need))
}

/// The host that links are to be made for: the one that the client came by.
fn host(session: &Session, config: &Config) -> String {
    let public = public::of(&config.settings, &public::arrival(session));
    let base = public.and_then(|public| Url::parse(&public.base).ok());
    let host = base.and_then(|base| {
        let host = base.host_str()?.to_owned();
        Some(base.port().map_or(host.clone(), |port| format!("{host}:{port}")))
    });
    host.unwrap_or_else(|| "localhost".to_owned())
}

/// Works, and sends a line for each artifact as it ends. Who has left is worked for no longer.
async fn tell(session: &mut Session, mut work: Work<'_>) -> Result<()> {
    let mut response = ResponseHeader::build(200, Some(6))?;
    response.insert_header(header::CONTENT_TYPE, "application/x-ndjson")?;
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    response.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    // Nginx would hold lines back until it has many.
    response.insert_header("x-accel-buffering", "no")?;
    match session.req_header().version {
        // Only the connection's end can be the body's.
        Version::HTTP_10 => session.set_keepalive(None),
        _ => response.insert_header(header::TRANSFER_ENCODING, "chunked")?,
    }
    session.write_response_header(Box::new(response), false).await?;
    let mut done = Done::default();
    loop {
        let text = tokio::select! {
            line = work.next() => match line {
                None => break,
                Some(line) => {
                    done.count(&line);
                    written(&line)
                }
            },
            gone = session.as_downstream_mut().read_body_or_idle(true) => {
                tracing::info!(told = done.total, "whoever wanted artifacts to be cached has left");
                return gone.map(|_| ());
            }
            () = tokio::time::sleep(KEEP_ALIVE) => Bytes::from_static(b" "),
        };
        Reading { session }.write(text, false).await?;
    }
    done.done = true;
    let Done {
        total,
        cached,
        fetched,
        failed,
        bytes,
        ..
    } = done;
    tracing::info!(total, cached, fetched, failed, bytes, "artifacts were cached");
    Reading { session }.write(written(&done), true).await
}

fn written(line: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}
