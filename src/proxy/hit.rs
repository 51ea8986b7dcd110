//! What most requests are for: something fresh, complete and open.

use std::sync::Arc;

use super::Client;
use super::deliver::{is_html, left_of_view};
use super::dress::Shown;
use super::provenance::hit_status;
use super::resolve::Resolved;
use super::serve::Dress;
use crate::cache::{Object, now_ms};
use crate::fill::ahead::is_due_soon;
use crate::formats::links::Style;

/// An answer that only has to be written.
pub(super) struct Hit<'a> {
    pub object: Arc<Object>,
    pub dress: Dress<'a>,
}

impl Client {
    /// What a plain GET gets: something fresh, complete and already open, which most requests are for; found and dressed
    /// without waiting for anything. Everything else takes the long way.
    pub(super) fn hit<'a>(
        &self,
        resolved: &'a Resolved,
        gzip: bool,
        remote_url: impl FnOnce() -> Option<String>,
    ) -> Option<Hit<'a>> {
        if resolved.manifest.is_some() || resolved.remote.client_revalidation {
            return None;
        }
        let original = self.fills.store.in_memory(&resolved.key)?;
        if self.may_be_held(resolved, resolved.policy, &original) {
            return None;
        }
        let now = now_ms();
        let left = original.fresh.left(resolved.policy.class, resolved.policy.ttl, now);
        if !left.is_fresh() || resolved.view.is_none() && original.head.content_encoding().is_some() {
            return None;
        }
        // The long way has it fetched anew.
        if is_due_soon(&resolved.remote, resolved.policy, left) {
            return None;
        }
        let object = match resolved.view {
            None => Arc::clone(&original),
            Some(view) => {
                let url = match view.style {
                    Style::Relative => String::new(),
                    Style::Absolute => remote_url()?,
                };
                let kind = self.views.kind(&resolved.remote, view);
                self.views.in_memory(&original, kind, gzip, &url)?
            }
        };
        if !object.is_complete() {
            return None;
        }
        if resolved.view.is_some() {
            self.fills.store.count_use(&original);
        }
        let dress = Dress {
            policy: resolved.policy,
            left: match resolved.view {
                Some(_) => left.at_most(left_of_view(&object, now)),
                None => left,
            },
            age: Some(now.saturating_sub(original.fresh.checked_at()) / 1000),
            source: "cache",
            cache_status: hit_status(left),
            shown: Shown::of(resolved),
            by_coding: resolved.view.is_some(),
            presented_as: resolved.presented_as.filter(|_| is_html(original.head.content_type())),
            head_only: false,
        };
        Some(Hit { object, dress })
    }
}
