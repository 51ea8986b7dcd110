//! Package types as the configuration knows them. Each file of `formats/` describes its own, and whoever loads a
//! configuration hands the descriptions over: nothing in `config/` knows which there are.

use std::fmt;

use url::Url;

use crate::headers::Names;

/// `package:` of a remote: what its configuration may say besides what all remotes may.
#[derive(Clone, Copy)]
pub struct Package {
    /// The word in `remotes.yaml`.
    pub name: &'static str,
    /// The keys that only remotes of some package types have.
    pub keys: &'static [&'static OwnKey],
    /// `serve_stale_on`, where the remote does not say.
    pub serve_stale_on: &'static [u16],
    /// Whether there may be local remotes of this type.
    pub may_be_local: bool,
    /// A pattern that its metadata matches, as the file has it, where no path is mutable by nature: without
    /// `mutable_patterns` it would be kept for ever.
    pub metadata_pattern: Option<&'static str>,
    /// The header fields of upstream's that its ecosystem knows.
    pub headers: Names,
    /// Whether its paths tell which packages they belong to.
    pub names_packages: bool,
    /// A package's name in the one spelling that its ecosystem compares.
    pub normal_name: fn(&str) -> String,
    /// The setting that names the remote which is asked where clients name none.
    pub default_remote: Option<DefaultRemote>,
}

/// How `{package}.default_remote` is set outside of the settings file.
#[derive(Clone, Copy)]
pub struct DefaultRemote {
    /// On the command line, with its dashes.
    pub flag: &'static str,
    /// In the environment.
    pub variable: &'static str,
    /// What the help of the command line says of it.
    pub help: &'static str,
}

/// A key of `remotes.yaml` that only some package types have.
#[derive(Clone, Copy)]
pub struct OwnKey {
    /// The key itself.
    pub name: &'static str,
    /// The key that it follows where all are listed.
    pub follows: &'static str,
    /// What the README shows as its value.
    pub example: &'static str,
    /// What the README says of it.
    pub help: &'static str,
    /// What it holds.
    pub holds: Holds,
}

/// What an [`OwnKey`] holds: how it is read, checked and shown follows from that.
#[derive(Clone, Copy)]
pub enum Holds {
    /// A URL whose path ends in `/`, of a server that belongs to the remote as that of `base_url` does.
    Url {
        /// What is meant where the key is absent, by `base_url`.
        implied: fn(&Url) -> Option<Url>,
        /// What is legal but hardly meant.
        doubt: fn(&Url) -> Option<Doubt>,
    },
    /// Hosts whose token service may see the credentials; https, or on this machine.
    TokenRealms,
    /// One of some words; the first where the key is absent.
    Word(&'static [&'static str]),
}

/// A warning of a key's value.
#[derive(Debug, Clone, Copy)]
pub struct Doubt {
    /// What is odd: said behind the key's name.
    pub message: &'static str,
    /// What to do about it.
    pub hint: &'static str,
}

impl Package {
    /// A package type of this name whose remotes have no keys of their own.
    pub const fn named(name: &'static str) -> Self {
        Package {
            name,
            keys: &[],
            serve_stale_on: &[],
            may_be_local: true,
            metadata_pattern: None,
            headers: Names::NONE,
            names_packages: true,
            normal_name: str::to_owned,
            default_remote: None,
        }
    }
}

impl PartialEq for Package {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Package {}

impl fmt::Debug for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
