//! Patterns from `remotes.yaml`: of paths, searched anywhere in one, look-around allowed, and never able to hang a request; and
//! of package names.

use std::fmt;

use fancy_regex::{Regex, RegexBuilder};
use globset::{GlobBuilder, GlobMatcher};

/// Steps that back-tracking may take on one path. Patterns without look-around or back-references do not back-track at
/// all: `fancy_regex` hands them to the linear-time `regex` engine.
const BACKTRACK_LIMIT: usize = 100_000;

/// A compiled entry of `immutable_patterns` or `mutable_patterns`.
#[derive(Clone)]
pub struct Pattern {
    regex: Regex,
}

impl Pattern {
    /// Compiles `source`.
    ///
    /// # Errors
    /// What is wrong with the pattern, in the regex library's words.
    pub fn new(source: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(source)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Pattern { regex })
    }

    /// Whether the pattern is found anywhere in `path`. A search that would need more than the back-tracking limit
    /// counts as not found and is logged, so that a costly pattern refuses a path and never holds a request up.
    pub fn is_match(&self, path: &str) -> bool {
        match self.regex.is_match(path) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(pattern = self.as_str(), %error, "pattern gave up on a path: it does not match");
                false
            }
        }
    }

    /// The pattern as it was meant (escapes of the configuration file resolved).
    pub fn as_str(&self) -> &str {
        self.regex.as_str()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Packages by name: `*` stands for any letters, also for a slash.
#[derive(Clone)]
pub struct PackagePattern(GlobMatcher);

impl PackagePattern {
    /// Reads a pattern; `normal` spells names as the ecosystem does.
    ///
    /// # Errors
    /// `text` is no pattern.
    pub fn new(text: &str, normal: fn(&str) -> String) -> Result<Self, String> {
        Self::read(text, normal, false)
    }

    /// Reads a pattern that takes capitals for small letters, also where the ecosystem tells them apart: upstream may not.
    ///
    /// # Errors
    /// `text` is no pattern.
    pub fn in_any_case(text: &str, normal: fn(&str) -> String) -> Result<Self, String> {
        Self::read(text, normal, true)
    }

    fn read(text: &str, normal: fn(&str) -> String, any_case: bool) -> Result<Self, String> {
        if text.is_empty() {
            return Err("names no package".to_owned());
        }
        let glob = GlobBuilder::new(&normal(text)).case_insensitive(any_case).build();
        let glob = glob.map_err(|error| format!("is no pattern of package names: {}", error.kind()))?;
        Ok(PackagePattern(glob.compile_matcher()))
    }

    /// Whether a package of this normal name is meant.
    pub fn is_match(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// The pattern as it was read.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }
}

impl fmt::Debug for PackagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
