//! `tokens:` of the settings: who is known by which secret, and what that may be used for. Only hashes are configured and
//! kept. A token is 256 random bits, which nobody finds by trying, so that SHA-256 serves and no slow hash is needed.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use globset::{GlobBuilder, GlobMatcher};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::model::Secret;
use super::problem::Fault;
use super::quarantine::moment;
use super::section::Section;
use super::values::choice;
use super::yaml::Node;

/// What stands before the hash of a token.
const HASHED_BY: &str = "sha256:";

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Reading artifacts, of protected remotes too.
    Read,
    /// Changing what local remotes hold.
    Write,
    /// Everything: also flushing, letting through quarantine, and seeing the configuration.
    Admin,
}

impl Scope {
    const ALL: [(&'static str, Scope); 3] = [("read", Scope::Read), ("write", Scope::Write), ("admin", Scope::Admin)];

    /// The word in `scopes`.
    pub fn name(self) -> &'static str {
        let mut all = Scope::ALL.into_iter();
        all.find(|(_, scope)| *scope == self).map_or("", |(name, _)| name)
    }

    /// The scope of this name.
    pub fn named(text: &str) -> Option<Self> {
        let mut all = Scope::ALL.into_iter();
        all.find(|(name, _)| *name == text).map(|(_, scope)| scope)
    }
}

/// A token that is known here by its hash.
#[derive(Debug, Clone)]
pub struct Token {
    /// For people: in errors and `/config`.
    pub name: String,
    hash: [u8; 32],
    pub scopes: Vec<Scope>,
    /// Which remotes it is good for; `None`: all, and what belongs to none.
    pub remotes: Option<Vec<NamePattern>>,
    /// In Unix seconds.
    pub expires: Option<u64>,
}

/// A pattern of remotes' names, as it stands in the file.
#[derive(Clone)]
pub struct NamePattern {
    pub text: String,
    matcher: GlobMatcher,
}

impl fmt::Debug for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl NamePattern {
    fn read(text: &str) -> Result<Self, Fault> {
        let glob = GlobBuilder::new(text).build();
        let glob = glob.map_err(|error| Fault::new(format!("is no pattern of names: {}", error.kind())))?;
        Ok(NamePattern {
            text: text.to_owned(),
            matcher: glob.compile_matcher(),
        })
    }

    pub fn matches(&self, remote: &str) -> bool {
        self.matcher.is_match(remote)
    }
}

impl Token {
    /// The one that `ARTIFACTAPI_ADMIN_TOKEN` holds, which may do everything.
    pub(super) fn of_administrator(secret: &Secret) -> Self {
        Token {
            name: "ARTIFACTAPI_ADMIN_TOKEN".to_owned(),
            hash: hash(secret.reveal().as_bytes()),
            scopes: vec![Scope::Admin],
            remotes: None,
            expires: None,
        }
    }

    /// Whether it is good for `scope` at one remote, or for all and what belongs to none. `admin` includes the others.
    pub fn grants(&self, scope: Scope, remote: Option<&str>) -> bool {
        let is_meant = match (&self.remotes, remote) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(patterns), Some(remote)) => patterns.iter().any(|pattern| pattern.matches(remote)),
        };
        is_meant && self.grants_somewhere(scope)
    }

    /// Whether it is good for `scope` at any remote.
    pub fn grants_somewhere(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|own| *own == scope || *own == Scope::Admin)
    }

    /// Whether its time is over; `now` in Unix seconds.
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

/// The tokens that are known.
#[derive(Debug, Clone, Default)]
pub struct Tokens(Vec<Token>);

impl Tokens {
    pub(super) fn new(administrator: Option<&Secret>, configured: Vec<Token>) -> Self {
        let administrator = administrator.map(Token::of_administrator);
        Tokens(administrator.into_iter().chain(configured).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.iter()
    }

    /// The token of this secret, be it expired. All are compared, and each to its end, so that the time tells nothing.
    pub fn find(&self, secret: &[u8]) -> Option<&Token> {
        let given = hash(secret);
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.hash.ct_eq(&given)) {
                found = Some(token);
            }
        }
        found
    }
}

fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// The hash of a token, as `hash` of its entry has it.
pub fn hashed(secret: &str) -> String {
    format!("{HASHED_BY}{}", hex::encode(hash(secret.as_bytes())))
}

/// Reads `tokens:`.
pub(super) fn read(top: &Section<'_>) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for item in top.items("tokens").unwrap_or_default() {
        let Some(token) = token(top, item) else { continue };
        let fault = match tokens
            .iter()
            .find(|known| known.name == token.name || known.hash == token.hash)
        {
            Some(known) if known.name == token.name => {
                Some(Fault::new(format!("a second token of the name {:?}", token.name)).hint("rename one of them"))
            }
            Some(known) => Some(Fault::new(format!(
                "the tokens {:?} and {:?} have one hash",
                known.name, token.name
            ))),
            None => None,
        };
        match fault {
            Some(fault) => top.cx.error(item.at, fault),
            None => tokens.push(token),
        }
    }
    tokens
}

fn token(top: &Section<'_>, item: &Node) -> Option<Token> {
    const KEYS: [&str; 5] = ["name", "hash", "scopes", "remotes", "expires"];
    let section = Section::open(top.cx, item, "tokens.", &KEYS, &[]);
    for key in ["name", "hash", "scopes"] {
        if item.is_map() && section.entry(key).is_none() {
            let fault = Fault::new(format!("`tokens.{key}` is missing"));
            let hint = "an entry is {name: ci, hash: \"sha256:…\", scopes: [read]}; `artifactapi token NAME` makes one";
            top.cx.error(item.at, fault.hint(hint));
        }
    }
    let name = section.parse("name", |text| {
        let is_name = !text.is_empty() && text.len() <= 128 && !text.chars().any(char::is_control);
        match is_name {
            true => Ok(text.to_owned()),
            false => Err(Fault::new("must be 1 to 128 characters on one line")),
        }
    });
    let hash = section.text("hash").and_then(|text| {
        // Neither shown nor repeated: somebody may have put the token itself there.
        let digest = text.value.strip_prefix(HASHED_BY);
        let digest = digest.and_then(|digest| hex::decode(digest).ok()?.try_into().ok());
        if digest.is_none() {
            let fault = Fault::new(format!("`tokens.hash` is not `{HASHED_BY}` and 64 hexadecimal digits"));
            let hint = "write the SHA-256 of the token, not the token; `artifactapi token NAME` makes both";
            section.cx.error(text.at, fault.hint(hint));
        }
        digest
    });
    let scopes = section.distinct("scopes", |text| choice(text, &Scope::ALL));
    if section.items("scopes").is_some_and(<[_]>::is_empty)
        && let Some(entry) = section.entry("scopes")
    {
        section.cx.error(
            entry.value.at,
            Fault::new("`tokens.scopes` names nothing that the token may be used for").hint("write [read], for one"),
        );
    }
    let remotes = section.list("remotes", NamePattern::read);
    let expires = section.parse("expires", moment);
    if let (Some(at), Some(entry)) = (expires, section.entry("expires"))
        && at
            <= SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs()
    {
        let fault = Fault::new("this token has expired, and is good for nothing any more");
        section
            .cx
            .warn(entry.value.at, fault.hint("remove its entry, or make a new one"));
    }
    Some(Token {
        name: name?,
        hash: hash?,
        scopes,
        remotes: remotes.map(|remotes| remotes.into_iter().map(|(_, pattern)| pattern).collect()),
        expires,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(scopes: &[Scope], remotes: Option<&[&str]>) -> Token {
        Token {
            name: "t".to_owned(),
            hash: hash(b"secret"),
            scopes: scopes.to_vec(),
            remotes: remotes.map(|texts| texts.iter().map(|text| NamePattern::read(text).unwrap()).collect()),
            expires: Some(100),
        }
    }

    #[test]
    fn a_token_is_good_for_what_it_lists() {
        let reader = token(&[Scope::Read], Some(&["team-*", "pypi"]));
        for (scope, remote, granted) in [
            (Scope::Read, Some("pypi"), true),
            (Scope::Read, Some("team-a"), true),
            (Scope::Read, Some("npm"), false),
            (Scope::Read, None, false),
            (Scope::Write, Some("pypi"), false),
            (Scope::Admin, Some("pypi"), false),
        ] {
            assert_eq!(reader.grants(scope, remote), granted, "{scope:?} {remote:?}");
        }
        let admin = token(&[Scope::Admin], None);
        for scope in [Scope::Read, Scope::Write, Scope::Admin] {
            assert!(admin.grants(scope, Some("any")) && admin.grants(scope, None));
        }
        assert!(!token(&[Scope::Write], None).grants(Scope::Read, Some("any")));
        assert!(!reader.is_expired(99));
        assert!(reader.is_expired(100));
    }

    #[test]
    fn a_token_is_known_by_its_whole_secret_only() {
        let tokens = Tokens::new(None, vec![token(&[Scope::Read], None)]);
        assert!(tokens.find(b"secret").is_some());
        for other in [&b"secre"[..], b"secrets", b"", b"Secret"] {
            assert!(tokens.find(other).is_none());
        }
    }
}
