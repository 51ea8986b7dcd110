//! What may be served and for how long it is trusted: pure functions of (remote, path).

pub mod packages;
pub mod quarantine;

use std::time::Duration;

use crate::config::{Pattern, Remote};
use crate::formats::{Asset, Class};

/// Why a path has its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// One of the user's patterns.
    Pattern,
    /// The nature of the package type.
    BuiltIn,
    /// The remote has no `immutable_patterns`, so everything is allowed.
    Unrestricted,
}

/// What the configuration says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub class: Class,
    pub basis: Basis,
    /// Zero: for ever when immutable, expired at once when mutable.
    pub ttl: Duration,
    /// On expiry upstream is asked conditionally instead of for the whole.
    pub conditional: bool,
}

/// Classifies an artifact. `None`: no pattern allows it, 403.
///
/// The order is the contract: the user's `mutable_patterns`; built-in immutable; built-in mutable;
/// `immutable_patterns`; and what nothing matched is immutable only where that key is absent. What is named by its digest
/// is immutable by whichever of them allows it.
pub fn classify(asset: &Asset) -> Option<Policy> {
    let remote = &asset.remote;
    let matches = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.is_match(&asset.governing));
    let own_mutable = matches(&remote.mutable_patterns);
    let allowed = || remote.immutable_patterns.as_deref().is_none_or(matches);
    let (class, basis) = if asset.digest.is_some() {
        if !own_mutable && !allowed() {
            return None;
        }
        (Class::Immutable, Basis::BuiltIn)
    } else if own_mutable {
        (Class::Mutable, Basis::Pattern)
    } else if let Some(class) = asset.nature {
        (class, Basis::BuiltIn)
    } else if !allowed() {
        return None;
    } else {
        let basis = match &remote.immutable_patterns {
            None => Basis::Unrestricted,
            Some(_) => Basis::Pattern,
        };
        (Class::Immutable, basis)
    };
    let ttl = match class {
        Class::Immutable => remote.ttl.immutable,
        Class::Mutable => remote.ttl.mutable,
    };
    Some(Policy {
        class,
        basis,
        ttl,
        conditional: class == Class::Mutable && (asset.revalidated || own_mutable && remote.check_mutable_updates),
    })
}

/// Content that is stored under its digest, whatever name led to it.
pub fn of_content(remote: &Remote) -> Policy {
    Policy {
        class: Class::Immutable,
        basis: Basis::BuiltIn,
        ttl: remote.ttl.immutable,
        conditional: false,
    }
}

/// A file of a fixed name, stored under its checksum: it never changes, its manifest says how long it is asked for.
pub fn of_set_member() -> Policy {
    Policy {
        class: Class::Immutable,
        basis: Basis::BuiltIn,
        ttl: Duration::ZERO,
        conditional: false,
    }
}

/// A file that was uploaded: it may be replaced at any time.
pub fn of_local() -> Policy {
    Policy {
        class: Class::Mutable,
        basis: Basis::BuiltIn,
        ttl: Duration::ZERO,
        conditional: false,
    }
}

/// A service of an ecosystem that is passed through and never stored.
pub fn of_service() -> Policy {
    Policy {
        class: Class::Mutable,
        basis: Basis::BuiltIn,
        ttl: Duration::ZERO,
        conditional: false,
    }
}
