//! The keys that only some package types have: how each kind of them is read, checked and shown.

use serde_json::{Value as Json, json};
use url::Url;

use super::address;
use super::model::{OwnKeys, OwnValue};
use super::package::{Holds, OwnKey, Package};
use super::problem::Fault;
use super::section::Section;
use super::values::{choice, shown_host, shown_url};

/// The keys that only some package types have, each once, with the first type that has it.
pub(super) struct KnownKeys(Vec<(&'static Package, &'static OwnKey)>);

impl KnownKeys {
    /// Those that these package types have.
    pub(super) fn of(packages: &[&'static Package]) -> Self {
        let mut found: Vec<(&'static Package, &'static OwnKey)> = Vec::new();
        for package in packages {
            for key in package.keys {
                if found.iter().all(|(_, other)| other.name != key.name) {
                    found.push((package, key));
                }
            }
        }
        KnownKeys(found)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'static OwnKey> {
        self.0.iter().map(|(_, key)| *key)
    }

    /// The names of those that say where upstream is.
    pub(super) fn urls(&self) -> impl Iterator<Item = &'static str> {
        let urls = self.iter().filter(|key| matches!(key.holds, Holds::Url { .. }));
        urls.map(|key| key.name)
    }

    /// Their names among those of the keys that all remotes have, in the order in which they are listed.
    pub(super) fn among(&self, names: &[&'static str]) -> Vec<&'static str> {
        let mut names = names.to_vec();
        for key in self.iter() {
            let before = names.iter().position(|name| *name == key.follows);
            names.insert(before.map_or(names.len(), |before| before + 1), key.name);
        }
        names
    }

    /// What `section` says under them, for a remote of type `package`.
    pub(super) fn read(&self, section: &Section<'_>, package: &Package, base_url: Option<&Url>) -> OwnKeys {
        let mut own = OwnKeys::default();
        for (other, key) in &self.0 {
            let value = key.read(section);
            let entry = section.entry(key.name);
            if package.keys.iter().all(|known| known.name != key.name) {
                if let Some(entry) = entry {
                    let fault = Fault::new(format!("`{}` means nothing to package {}", key.name, package.name));
                    let hint = format!("remove it; it belongs to `package: {}`", other.name);
                    section.cx.error(entry.at, fault.hint(hint));
                }
                continue;
            }
            if let (Some(entry), Some(fault)) = (entry, value.as_ref().and_then(|value| key.doubt(value))) {
                section.cx.warn(entry.value.at, fault);
            }
            let value = match entry {
                Some(_) => value,
                None => base_url.and_then(|base_url| key.implied(base_url)),
            };
            if let Some(value) = value {
                own.set(key, value);
            }
        }
        own
    }
}

impl OwnKey {
    /// The key's value in `section`. `None`: it is absent, or has been complained about.
    fn read(&'static self, section: &Section<'_>) -> Option<OwnValue> {
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
    fn implied(&self, base_url: &Url) -> Option<OwnValue> {
        match self.holds {
            Holds::Url { implied, .. } => implied(base_url).map(OwnValue::Url),
            Holds::TokenRealms | Holds::Word(_) => None,
        }
    }

    /// A warning of `value`.
    fn doubt(&self, value: &OwnValue) -> Option<Fault> {
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
            Holds::Url { .. } => json!(own.url(self).map(shown_url)),
            Holds::TokenRealms => json!(own.token_realms().iter().map(shown_host).collect::<Vec<_>>()),
            Holds::Word(_) => json!(own.word(self)),
        }
    }
}
