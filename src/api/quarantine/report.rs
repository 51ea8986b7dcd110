//! `GET /api/v1/quarantine`: what is held back and would be, what of it was asked for by whom, and what is stored and too young.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header;
use pingora_error::Result;
use pingora_proxy::Session;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::asked::{Name, Questions};
use super::judged::{Judged, date};
use super::{parameters, remote};
use crate::api::Api;
use crate::api::access::{self, Need};
use crate::cache::now_ms;
use crate::catalog::{CatalogError, Class, Filter, MAX_LIMIT, Record, rfc3339};
use crate::config::{Clock, Config, MissingDate, Quarantine, Remote};
use crate::fill::let_through::named;
use crate::formats::hold::Dates;
use crate::formats::{Asset, path};
use crate::session::reply::{self, Problem};

/// Most artifacts in a report, and what it has unless it is asked for more or less.
const MOST: usize = 10_000;
const USUAL: usize = 1000;
/// Stored artifacts that are looked at of one remote.
const MOST_STORED: usize = 100_000;
/// How long the report looks at them.
const LIMIT: Duration = Duration::from_secs(10);
/// Between so many artifacts that were asked for, the thread is handed back.
const PIECE: usize = 256;
/// Reports that are made at once: anybody may ask for one.
static TURNS: Semaphore = Semaphore::const_new(2);
const DAY: u64 = 24 * 3600;

/// An artifact of the report.
struct Line {
    asset: Asset,
    dates: Dates,
    judged: Judged,
    is_stored: bool,
    asked: Option<Questions>,
}

/// What is being put together.
struct Report<'a> {
    config: &'a Config,
    until: Instant,
    /// By remote and path.
    lines: BTreeMap<(String, String), Line>,
    limit: usize,
    is_truncated: bool,
}

impl Api {
    pub(super) async fn report(&self, session: &mut Session, config: &Config, query: &str) -> Result<()> {
        let shows_addresses = access::permits(session, config, Need::ManageAll);
        let asked = parameters(query, ["remote", "limit"]).and_then(|[name, limit]| {
            let name = name.map(|name| remote(config, &name).map(|remote| remote.name.clone()));
            Ok((name.transpose()?, limit_of(limit.as_deref())?))
        });
        let (only, limit) = match asked {
            Ok(asked) => asked,
            Err(problem) => return reply::problem(session, None, problem).await,
        };
        let Ok(Ok(turn)) = tokio::time::timeout(LIMIT, TURNS.acquire()).await else {
            let detail = "too many reports are being made; try again";
            let problem = Problem::new(503, detail).header(header::RETRY_AFTER, "5");
            return reply::problem(session, None, problem).await;
        };
        let mut report = Report {
            config,
            until: Instant::now() + LIMIT,
            lines: BTreeMap::new(),
            limit,
            is_truncated: false,
        };
        let readable = access::readable(session, config);
        let is_meant = |name: &str| {
            let is_readable = readable.as_ref().is_none_or(|all| all.iter().any(|one| one == name));
            is_readable && only.as_deref().is_none_or(|only| only == name)
        };
        for (at, (name, questions)) in self.asked.list().into_iter().enumerate() {
            if is_meant(&name.0) {
                self.add_asked(&mut report, name, questions);
            }
            if at % PIECE == PIECE - 1 {
                tokio::task::yield_now().await;
            }
        }
        let mut detail = None;
        for remote in config.remotes.values() {
            if is_meant(&remote.name)
                && remote.quarantine.is_on()
                && let Err(error) = self.add_stored(&mut report, remote).await
            {
                report.is_truncated = true;
                detail = Some(format!("what is stored cannot be looked at: {error}"));
                break;
            }
        }
        drop(turn);
        let mut answer = report.answer(shows_addresses);
        if let Some(detail) = detail {
            answer["detail"] = json!(detail);
        }
        reply::json(session, 200, &answer).await
    }

    fn add_asked(&self, report: &mut Report<'_>, (name, path): Name, questions: Questions) {
        let Some(remote) = report.config.remotes.get(&*name) else {
            return;
        };
        let Some(asset) = named(remote, &path).ok().flatten() else {
            return;
        };
        let dates = questions.dates;
        let judged = Judged::new(&asset, &self.fills.judge(&asset, dates, now_ms()));
        if judged.is_held() {
            report.add(Line {
                asset,
                dates,
                judged,
                is_stored: false,
                asked: Some(questions),
            });
        }
    }

    /// Adds what is stored of a remote and too young. What was stored long ago was published before.
    async fn add_stored(&self, report: &mut Report<'_>, remote: &Arc<Remote>) -> Result<(), CatalogError> {
        self.fills.catalog.drain().await?;
        let filter = Filter {
            remote: Some(remote.name.clone()),
            class: Some(Class::Immutable),
            ..Filter::default()
        };
        let since = begins(&remote.quarantine, now_ms() / 1000);
        let (mut after, mut looked_at) = (None, 0);
        loop {
            let page = self.fills.catalog.newest(&filter, after, MAX_LIMIT).await?;
            for record in page.records {
                if since.is_some_and(|since| seconds(record.first_seen) < since) {
                    return Ok(());
                }
                looked_at += 1;
                if looked_at > MOST_STORED || Instant::now() > report.until {
                    report.is_truncated = true;
                    return Ok(());
                }
                self.add_record(report, remote, &record).await;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn add_record(&self, report: &mut Report<'_>, remote: &Arc<Remote>, record: &Record) {
        // What a digest names is stored for all who ask for it by other paths.
        let asset = named(remote, &record.path).ok().flatten().unwrap_or_else(|| {
            let path = path::parse(record.path.as_bytes(), None).unwrap_or_default();
            Asset::new(remote, path, |path| path)
        });
        if asset.is_index() {
            return;
        }
        let own = record.published_at.map(seconds);
        let dates = Dates {
            published: self.fills.published_by_stored(&asset).await.or(own),
            first_seen: match remote.quarantine.goes_by_sight() {
                true => self.fills.first_seen(&asset).await,
                false => Some(seconds(record.first_seen)),
            },
        };
        let judged = Judged::new(&asset, &self.fills.judge(&asset, dates, now_ms()));
        if judged.is_held() || dates.published.is_none() {
            report.add(Line {
                asset,
                dates,
                judged,
                is_stored: true,
                asked: None,
            });
        }
    }
}

impl Report<'_> {
    fn add(&mut self, line: Line) {
        let name = (line.asset.remote.name.clone(), super::asked::shown(&line.asset));
        if let Some(known) = self.lines.get_mut(&name) {
            known.is_stored |= line.is_stored;
            return;
        }
        match self.lines.len() < self.limit {
            true => drop(self.lines.insert(name, line)),
            false => self.is_truncated = true,
        }
    }

    fn answer(self, shows_addresses: bool) -> Value {
        let mut undated = Vec::new();
        let mut artifacts = Vec::new();
        for ((_, path), line) in &self.lines {
            let shown = line.shown(path, shows_addresses);
            match line.dates.published {
                None => undated.push(shown),
                Some(_) => artifacts.push(shown),
            }
        }
        json!({"artifacts": artifacts, "undated": undated, "truncated": self.is_truncated})
    }
}

impl Line {
    fn shown(&self, path: &str, shows_addresses: bool) -> Value {
        let Line { asset, judged, .. } = self;
        let mut shown = json!({
            "remote": asset.remote.name,
            "path": path,
            "package": asset.package,
            "version": asset.version,
            "mode": judged.verdict,
            "rule": judged.rule,
            "reason": judged.reason,
            "published": date(self.dates.published),
            "first_seen": date(self.dates.first_seen),
            "period_days": asset.remote.quarantine.days_of(asset.package.as_deref()),
            "due": date(judged.until),
            "stored": self.is_stored,
            "asked": self.asked.as_ref().map_or(0, |asked| asked.count),
            "last_asked": self.asked.as_ref().map(|asked| rfc3339(asked.last)),
        });
        if shows_addresses {
            let clients = self.asked.iter().flat_map(|asked| &asked.clients);
            shown["clients"] = clients.map(ToString::to_string).collect();
        }
        shown
    }
}

/// What was seen first before this moment is old enough, whatever it is; in Unix seconds. `None`: nothing is.
fn begins(policy: &Quarantine, now: u64) -> Option<u64> {
    // Without a date it may be held for ever.
    if policy.missing_date == MissingDate::Deny && policy.clock == Clock::Published {
        return None;
    }
    let days = policy.overrides.iter().map(|(_, days)| *days).chain(policy.days).max();
    let by_period = now.saturating_sub(u64::from(days.unwrap_or(0)) * DAY);
    Some(policy.freeze.map_or(by_period, |freeze| freeze.min(by_period)))
}

fn seconds(unix: i64) -> u64 {
    u64::try_from(unix).unwrap_or(0)
}

fn limit_of(text: Option<&str>) -> Result<usize, Problem> {
    let Some(text) = text else { return Ok(USUAL) };
    let limit = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
    limit.ok_or_else(|| Problem::new(400, format!("`limit` is a number from 1 to {MOST}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_before_the_longest_period_is_not_looked_at() {
        let now = 100 * DAY;
        let mut policy = Quarantine {
            days: Some(3),
            ..Quarantine::default()
        };
        assert_eq!(begins(&policy, now), Some(97 * DAY));
        policy.freeze = Some(50 * DAY);
        assert_eq!(begins(&policy, now), Some(50 * DAY));
        policy.freeze = Some(200 * DAY);
        assert_eq!(begins(&policy, now), Some(97 * DAY));
        policy.missing_date = MissingDate::Deny;
        assert_eq!(begins(&policy, now), None);
    }

    #[test]
    fn limits_are_numbers_within_bounds() {
        assert_eq!(limit_of(None).unwrap(), USUAL);
        assert_eq!(limit_of(Some("10000")).unwrap(), MOST);
        for bad in ["0", "10001", "-1", "many"] {
            assert_eq!(limit_of(Some(bad)).unwrap_err().status, 400, "{bad}");
        }
    }
}
