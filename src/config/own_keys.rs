//! The keys that only some package types have: how each kind of them is read, checked and shown.

use serde_json::{Value as Json, json};
use url::Url;

use super::address;
use super::model::{OwnKeys, OwnValue};
use super::package::{Holds, OwnKey, Package};
use super::problem::Fault;
use super::redact;
use super::section::Section;
use super::values::choice;

/// The keys that only some of these package types have, each once, with the first type that has it.
pub(super) fn keys(packages: &[&'static Package]) -> Vec<(&'static Package, &'static OwnKey)> {
    let mut found: Vec<(&'static Package, &'static OwnKey)> = Vec::new();
    for package in packages {
        for key in package.keys {
            if found.iter().all(|(_, other)| other.name != key.name) {
                found.push((package, key));
            }
        }
    }
    found
}

impl OwnKey {
    /// The key's value in `section`. `None`: it is absent, or has been complained about.
    pub(super) fn read(&'static self, section: &Section<'_>) -> Option<OwnValue> {
        match self.holds {
            Holds::Url { .. } => section.parse(self.name, address::base_url).map(OwnValue::Url),
            Holds::TokenRealms => {
                let hosts = section.distinct(self.name, address::token_realm);
                (!hosts.is_empty()).then_some(OwnValue::TokenRealms(hosts))
            }
            Holds::Word(words) => {
                let options: Vec<(&'static str, &'static str)> = words.iter().map(|word| (*word, *word)).collect();
                section
                    .parse(self.name, |text| choice(text, &options))
                    .map(OwnValue::Word)
            }
        }
    }

    /// What `base_url` implies where the key is absent.
    pub(super) fn implied(&self, base_url: &Url) -> Option<OwnValue> {
        match self.holds {
            Holds::Url { implied, .. } => implied(base_url).map(OwnValue::Url),
            Holds::TokenRealms | Holds::Word(_) => None,
        }
    }

    /// A warning of `value`.
    pub(super) fn doubt(&self, value: &OwnValue) -> Option<Fault> {
        match (self.holds, value) {
            (Holds::Url { doubt, .. }, OwnValue::Url(url)) => {
                doubt(url).map(|doubt| Fault::new(format!("`{}` {}", self.name, doubt.message)).hint(doubt.hint))
            }
            _ => None,
        }
    }

    /// What `GET /config` shows of the key for a remote with these values.
    pub(super) fn shown(&self, own: &OwnKeys) -> Json {
        match self.holds {
            Holds::Url { .. } => json!(own.url(self).map(redact::url)),
            Holds::TokenRealms => json!(own.token_realms().iter().map(redact::file_host).collect::<Vec<_>>()),
            Holds::Word(_) => json!(own.word(self)),
        }
    }

    /// Whether the key says where upstream is: a local remote has none.
    pub(super) fn is_url(&self) -> bool {
        matches!(self.holds, Holds::Url { .. })
    }
}
