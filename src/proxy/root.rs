//! Requests below the root of a package type ([`Root`]).

use std::sync::Arc;

use http::header;
use pingora_error::Result;
use pingora_proxy::Session;

use super::resolve::{HotKey, Resolved, Target};
use super::voice::Voice;
use super::{Client, Ctx, wire};
use crate::api::access::{self, Need};
use crate::config::{Config, Remote};
use crate::formats::root::{Below, Meant, Root};
use crate::session::reply::{self, Problem};

/// A request below a root, as it was routed.
pub(super) struct BelowRoot {
    pub root: &'static dyn Root,
    pub raw: Vec<u8>,
    pub query: Option<String>,
    /// The remote that the host is bound to.
    pub bound: Option<Arc<Remote>>,
}

impl Client {
    /// Answers a request below a root.
    pub(super) async fn below_root(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        config: &Config,
        asked: BelowRoot,
        hot: Option<HotKey>,
    ) -> Result<bool> {
        speak(session, asked.root);
        let meant = asked.root.choose(Below {
            config,
            bound: asked.bound.as_ref(),
            method: &session.req_header().method,
            raw: &asked.raw,
            query: asked.query.as_deref(),
        });
        match meant {
            Meant::Artifact { remote, path, query } => {
                let target = Target {
                    raw: path.into_bytes(),
                    query,
                    bound_host: asked.bound.is_some(),
                    below_root: true,
                };
                self.artifact(session, ctx, config, remote, target, hot).await
            }
            Meant::Document(document) => {
                // Clients ask this first, to find out whether they need a token and whether theirs is good.
                let need = match &asked.bound {
                    Some(remote) => Need::Read(remote),
                    None => Need::Enter(asked.root.package()),
                };
                if let Err(problem) = access::check(session, config, need) {
                    return self.forbid(session, Some(asked.root), problem).await;
                }
                reply::json(session, 200, &document).await?;
                Ok(true)
            }
            Meant::Refused { status, detail, path } => {
                let mut problem = Problem {
                    path,
                    ..Problem::new(status, detail)
                };
                // RFC 9110 section 15.5.6.
                if status == 405 {
                    problem = problem.header(header::ALLOW, "GET, HEAD");
                }
                self.refuse(session, Some(asked.root), problem).await
            }
        }
    }
}

/// What [`Voice`] would add to a hit, in lines of HTTP/1.1; `None` where that depends on the request or the list stored.
pub(super) fn lines_of_hits(resolved: &Resolved, target: &[u8]) -> Option<&'static [u8]> {
    match resolved.format.root() {
        None => Some(b""),
        Some(root) => root.says_of_stored(&resolved.asset, target),
    }
}

/// From now on this answer says what all answers below `root` say.
pub(super) fn speak(session: &mut Session, root: &'static dyn Root) {
    let target = wire::origin_form(session.req_header().raw_path());
    let target = String::from_utf8_lossy(target).into_owned();
    if let Some(voice) = session.downstream_modules_ctx.get_mut::<Voice>() {
        voice.root = Some((root, target));
    }
}
