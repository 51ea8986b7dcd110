//! What may be asked of a listing: its parameters, read and checked. Nothing here touches a database.

use globset::{GlobBuilder, GlobMatcher};
use percent_encoding::percent_decode_str;
use regex::{Regex, RegexBuilder};

use super::cursor::{self, Position};
#[cfg(test)]
use super::record::Record;
use super::record::{Class, unix_now};

const DEFAULT_LIMIT: usize = 100;
/// Most objects on one page.
pub const MAX_LIMIT: usize = 1_000;
/// Longest prefix, glob or pattern, in bytes.
const MAX_PATTERN: usize = 4_096;
/// Bound of a compiled pattern in bytes: `(a{1000}){1000}` is refused, not compiled.
const MAX_COMPILED: usize = 1 << 20;

/// A question that cannot be answered as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct QueryError {
    /// Names the parameter or field and says what is wrong with it.
    pub message: String,
}

impl QueryError {
    pub(crate) fn new(message: impl Into<String>) -> QueryError {
        QueryError {
            message: message.into(),
        }
    }

    pub(super) fn bad(name: &str, value: &str, wrong: impl std::fmt::Display) -> QueryError {
        let mut shown: String = value.chars().take(80).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        QueryError::new(format!("`{name}`: {shown:?} {wrong}"))
    }
}

/// Which objects are meant: all, narrowed by whatever is set. Paths are compared as they are listed: percent-encoded in
/// normal form, with their query.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub remote: Option<String>,
    /// Only what is of one of these remotes.
    pub among: Option<Vec<String>>,
    pub class: Option<Class>,
    /// Of the path.
    pub prefix: Option<String>,
    /// `*` and `?` stay within a segment, `**` does not; without any `/` it is held against the last segment only.
    pub glob: Option<GlobMatcher>,
    /// Searched anywhere in the path, in linear time (so without look-around).
    pub pattern: Option<Regex>,
    /// In bytes.
    pub min_size: Option<u64>,
    /// Last seen before this moment, in Unix seconds.
    pub seen_before: Option<i64>,
}

impl Filter {
    /// Whether an object of this remote, class and path is meant, as far as these can tell: for what is not in the
    /// catalogue, such as fills in progress.
    pub fn covers(&self, remote: &str, class: Class, path: &str) -> bool {
        self.remote.as_ref().is_none_or(|wanted| wanted == remote)
            && self.is_among(remote)
            && self.class.is_none_or(|wanted| wanted == class)
            && self.path_matches(path)
    }

    /// Whether a record is meant: what the databases' answers are held against.
    #[cfg(test)]
    pub(super) fn matches(&self, record: &Record) -> bool {
        self.covers(&record.remote, record.class, &record.path) && self.numbers_match(record.size, record.last_seen)
    }

    /// The part that says which remotes may be told of.
    pub(super) fn is_among(&self, remote: &str) -> bool {
        let among = self.among.as_ref();
        among.is_none_or(|among| among.iter().any(|name| name == remote))
    }

    /// The part that looks at the path.
    pub(super) fn path_matches(&self, path: &str) -> bool {
        self.prefix
            .as_ref()
            .is_none_or(|prefix| path.starts_with(prefix.as_str()))
            && self.glob.as_ref().is_none_or(|glob| glob.is_match(path))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(path))
    }

    /// The part that looks at size and time.
    pub(super) fn numbers_match(&self, size: u64, last_seen: i64) -> bool {
        self.min_size.is_none_or(|least| size >= least) && self.seen_before.is_none_or(|before| last_seen < before)
    }

    /// Whether anything but remote and class is asked for: only then do rows have to be looked at to be counted.
    pub(super) fn looks_at_rows(&self) -> bool {
        self.prefix.is_some()
            || self.glob.is_some()
            || self.pattern.is_some()
            || self.min_size.is_some()
            || self.seen_before.is_some()
    }

    /// This question, with the prefix that its pattern demands: then only what has it is looked at.
    pub(super) fn narrowed(&self) -> Filter {
        let mut filter = self.clone();
        if let Some(pattern) = &self.pattern {
            let demanded = demanded_prefix(pattern.as_str());
            let known = self.prefix.as_deref().unwrap_or_default();
            if demanded.len() > known.len() && demanded.starts_with(known) {
                filter.prefix = Some(demanded);
            }
        }
        filter
    }

    /// The first text behind all that begin with the prefix; `None` if there is no prefix or no such text.
    pub(super) fn prefix_end(&self) -> Option<String> {
        let mut chars: Vec<char> = self.prefix.as_ref()?.chars().collect();
        while let Some(last) = chars.pop() {
            // UTF-8 sorts by code point. The successor skips the surrogates, which are no characters.
            if let Some(next) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
                chars.push(next);
                return Some(chars.into_iter().collect());
            }
        }
        None
    }
}

/// What a listing is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortField {
    #[default]
    Path,
    Size,
    LastSeen,
    Hits,
    FirstSeen,
}

impl SortField {
    pub const ALL: [SortField; 5] = [
        SortField::Path,
        SortField::Size,
        SortField::LastSeen,
        SortField::Hits,
        SortField::FirstSeen,
    ];

    /// The word in `sort=`, and the name of the column.
    pub fn name(self) -> &'static str {
        match self {
            SortField::Path => "path",
            SortField::Size => "size",
            SortField::LastSeen => "last_seen",
            SortField::Hits => "hits",
            SortField::FirstSeen => "first_seen",
        }
    }
}

/// The order of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sort {
    pub field: SortField,
    pub descending: bool,
}

/// A listing that was asked for.
#[derive(Debug, Clone)]
pub struct ListQuery {
    pub filter: Filter,
    pub sort: Sort,
    pub limit: usize,
    /// Where the page before ended.
    pub after: Option<Position>,
    /// What a cursor must have been made for.
    identity: Vec<u8>,
}

impl Default for ListQuery {
    fn default() -> Self {
        ListQuery {
            filter: Filter::default(),
            sort: Sort::default(),
            limit: DEFAULT_LIMIT,
            after: None,
            identity: Given::default().identity(),
        }
    }
}

/// The parameters as they came.
#[derive(Default)]
struct Given {
    values: [Option<String>; NAMES.len()],
}

const NAMES: [&str; 10] = [
    "remote",
    "prefix",
    "glob",
    "pattern",
    "class",
    "min_size",
    "older_than",
    "sort",
    "limit",
    "cursor",
];
/// Those before this one decide which rows are listed in which order.
const LIMIT: &str = "limit";

impl Given {
    fn parse(query: &str) -> Result<Given, QueryError> {
        let mut given = Given::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| QueryError::bad("query", name, "is not UTF-8"))?;
            let Some(slot) = NAMES.iter().position(|known| *known == name) else {
                return Err(QueryError::bad(
                    "query",
                    &name,
                    format!("is not a parameter; known are {}", NAMES.join(", ")),
                ));
            };
            let value = decode(value).ok_or_else(|| QueryError::bad(&name, value, "is not UTF-8"))?;
            if given.values[slot].is_some() {
                return Err(QueryError::new(format!("`{name}` is given more than once")));
            }
            // An empty value is as none: a form sends its empty fields too.
            if !value.is_empty() {
                given.values[slot] = Some(value);
            }
        }
        Ok(given)
    }

    fn get(&self, name: &str) -> Option<&str> {
        let slot = NAMES.iter().position(|known| *known == name)?;
        self.values[slot].as_deref()
    }

    fn identity(&self) -> Vec<u8> {
        let mut identity = Vec::new();
        for (name, value) in NAMES.iter().zip(&self.values).take_while(|(name, _)| **name != LIMIT) {
            if let Some(value) = value {
                identity.extend_from_slice(format!("{name}={}:{value};", value.len()).as_bytes());
            }
        }
        identity
    }
}

/// Decodes a piece of a query string as forms write them: `+` is a space.
fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Into::into)
}

impl ListQuery {
    /// Reads the query string of a request (what follows `?`).
    ///
    /// # Errors
    /// The parameter that is unknown, given twice, or wrong.
    pub fn parse(query: &str) -> Result<ListQuery, QueryError> {
        ListQuery::parse_at(query, unix_now())
    }

    fn parse_at(query: &str, now: i64) -> Result<ListQuery, QueryError> {
        let given = Given::parse(query)?;
        let mut filter = Filter {
            among: None,
            remote: given.get("remote").map(str::to_owned),
            class: given.get("class").map(|value| class("class", value)).transpose()?,
            prefix: given.get("prefix").map(|value| prefix("prefix", value)).transpose()?,
            glob: given.get("glob").map(glob).transpose()?,
            pattern: given
                .get("pattern")
                .map(|value| pattern("pattern", value))
                .transpose()?,
            min_size: given.get("min_size").map(size).transpose()?,
            seen_before: given
                .get("older_than")
                .map(seconds)
                .transpose()?
                .map(|age| now.saturating_sub(age)),
        };
        let identity = given.identity();
        let mut after = None;
        if let Some(text) = given.get("cursor") {
            let Some((position, cutoff)) = cursor::decode(text, &identity) else {
                return Err(QueryError::new(
                    "`cursor` does not belong to this query: pass `next` of the page before unchanged, with the same \
                     filters and the same `sort`",
                ));
            };
            if filter.seen_before.is_some() {
                filter.seen_before = cutoff;
            }
            after = Some(position);
        }
        Ok(ListQuery {
            filter,
            sort: given.get("sort").map(sort).transpose()?.unwrap_or_default(),
            limit: given.get(LIMIT).map(limit).transpose()?.unwrap_or(DEFAULT_LIMIT),
            after,
            identity,
        })
    }

    /// The text that asks for what follows `position`.
    pub(super) fn cursor(&self, position: &Position) -> String {
        cursor::encode(position, self.filter.seen_before, &self.identity)
    }
}

pub(super) fn class(name: &str, value: &str) -> Result<Class, QueryError> {
    Class::from_name(value).ok_or_else(|| QueryError::bad(name, value, "is neither `mutable` nor `immutable`"))
}

fn sort(value: &str) -> Result<Sort, QueryError> {
    let (name, descending) = value.strip_prefix('-').map_or((value, false), |name| (name, true));
    let field = SortField::ALL
        .into_iter()
        .find(|field| field.name() == name)
        .ok_or_else(|| {
            let known = SortField::ALL.map(SortField::name).join(", ");
            QueryError::bad(
                "sort",
                value,
                format!("is not one of {known}, with `-` before it for the largest first"),
            )
        })?;
    Ok(Sort { field, descending })
}

fn limit(value: &str) -> Result<usize, QueryError> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| QueryError::bad(LIMIT, value, format!("is not a number from 1 to {MAX_LIMIT}")))
}

/// Paths are listed without leading slash; a prefix may be written with one.
pub(super) fn prefix(name: &str, value: &str) -> Result<String, QueryError> {
    short(name, value)?;
    Ok(value.strip_prefix('/').unwrap_or(value).to_owned())
}

fn glob(value: &str) -> Result<GlobMatcher, QueryError> {
    short("glob", value)?;
    let anywhere = if value.contains('/') { "" } else { "**/" };
    let pattern = format!("{anywhere}{}", value.strip_prefix('/').unwrap_or(value));
    let glob = GlobBuilder::new(&pattern).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher())
        .map_err(|error| QueryError::bad("glob", value, format!("is not a glob: {}", error.kind())))
}

pub(super) fn pattern(name: &str, value: &str) -> Result<Regex, QueryError> {
    short(name, value)?;
    RegexBuilder::new(value)
        .size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| {
            let look_around = ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|form| value.contains(form));
            let hint = if look_around {
                " (look-around serves in remotes.yaml only)"
            } else {
                ""
            };
            // The library draws the pattern with a pointer over several lines; the last one says what is wrong.
            let text = error.to_string();
            let wrong = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            QueryError::bad(name, value, format!("is not a pattern: {wrong}{hint}"))
        })
}

/// What every text begins with that `pattern` matches, as far as that is easily seen: the plain characters behind a `^`.
fn demanded_prefix(pattern: &str) -> String {
    let Some(rest) = pattern.strip_prefix('^').filter(|rest| !rest.contains('|')) else {
        return String::new();
    };
    let mut prefix = String::new();
    let mut rest = rest.chars();
    loop {
        let next = match rest.next() {
            // `\<` and `\>` are no characters.
            Some('\\') => rest
                .next()
                .filter(|next| next.is_ascii_punctuation() && !"<>".contains(*next)),
            Some(plain) if plain.is_ascii_alphanumeric() || "/-_%@~!:,=&".contains(plain) => Some(plain),
            // The character before it may be missing.
            Some('?' | '*' | '{') => {
                prefix.pop();
                None
            }
            // It is there, unless what is repeated may be missing as a whole.
            Some('+') => {
                let behind = rest.as_str();
                let behind = behind.strip_prefix('?').unwrap_or(behind);
                if behind.starts_with(['?', '*', '+', '{']) {
                    prefix.pop();
                }
                None
            }
            _ => None,
        };
        match next {
            Some(plain) => prefix.push(plain),
            None => return prefix,
        }
    }
}

fn short(name: &str, value: &str) -> Result<(), QueryError> {
    if value.len() > MAX_PATTERN {
        return Err(QueryError::bad(
            name,
            value,
            format!("is longer than {MAX_PATTERN} bytes"),
        ));
    }
    Ok(())
}

fn size(value: &str) -> Result<u64, QueryError> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];
    with_unit(value, &UNITS).ok_or_else(|| {
        QueryError::bad(
            "min_size",
            value,
            "is not a size: bytes, or a number with KB MB GB KiB MiB GiB",
        )
    })
}

fn seconds(value: &str) -> Result<i64, QueryError> {
    const UNITS: [(&str, u64); 6] = [
        ("", 1_000),
        ("ms", 1),
        ("s", 1_000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
    ];
    with_unit(value, &UNITS)
        .and_then(|millis| i64::try_from(millis / 1_000).ok())
        .ok_or_else(|| {
            QueryError::bad(
                "older_than",
                value,
                "is not a duration: seconds, or a number with ms s m h d",
            )
        })
}

fn with_unit(value: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::SortValue;
    use proptest::prelude::*;

    fn refused(query: &str) -> String {
        ListQuery::parse(query).expect_err(query).message
    }

    #[test]
    fn parameters_are_read() {
        let query = ListQuery::parse_at(
            "remote=pypi&prefix=%2Fpackages/a+b&glob=*.whl&pattern=%5Ep.*%24&class=immutable&min_size=2MiB\
             &older_than=2h&sort=-last_seen&limit=7",
            10_000,
        )
        .expect("a good query");
        let filter = &query.filter;
        assert_eq!(filter.remote.as_deref(), Some("pypi"));
        assert_eq!(filter.prefix.as_deref(), Some("packages/a b"));
        assert_eq!(filter.pattern.as_ref().map(Regex::as_str), Some("^p.*$"));
        assert_eq!(filter.class, Some(Class::Immutable));
        assert_eq!(filter.min_size, Some(2 << 20));
        assert_eq!(filter.seen_before, Some(2_800));
        assert_eq!(
            query.sort,
            Sort {
                field: SortField::LastSeen,
                descending: true
            }
        );
        assert_eq!(query.limit, 7);
        let empty = ListQuery::parse("remote=&prefix=&&cursor=").expect("empty is unset");
        assert!(empty.filter.remote.is_none() && !empty.filter.looks_at_rows() && empty.limit == 100);
        assert_eq!(empty.identity, ListQuery::default().identity);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, part) in [
            ("nope=1", r#""nope" is not a parameter; known are remote, prefix"#),
            ("remote=a&remote=b", "`remote` is given more than once"),
            ("remote=&remote=b&remote=c", "`remote` is given more than once"),
            ("class=maybe", "`class`: \"maybe\" is neither"),
            ("limit=0", "`limit`: \"0\" is not a number from 1 to 1000"),
            ("limit=1001", "`limit`"),
            ("limit=-1", "`limit`"),
            ("limit=ten", "`limit`"),
            (
                "sort=name",
                "`sort`: \"name\" is not one of path, size, last_seen, hits, first_seen",
            ),
            ("sort=--size", "`sort`"),
            ("min_size=5XB", "`min_size`"),
            ("min_size=99999999999GB", "`min_size`"),
            ("min_size=-1", "`min_size`"),
            ("older_than=tomorrow", "`older_than`"),
            ("glob=%5B", "`glob`: \"[\" is not a glob"),
            ("pattern=(", "`pattern`: \"(\" is not a pattern: unclosed group"),
            ("pattern=(?!x)", "look-around serves in remotes.yaml only"),
            ("pattern=(a{1000}){1000}", "size limit"),
            ("prefix=%ff", "`prefix`: \"%ff\" is not UTF-8"),
            ("cursor=x", "`cursor` does not belong to this query"),
        ] {
            let message = refused(query);
            assert!(message.contains(part), "{query}: {message}");
        }
        assert!(refused(&format!("glob={}", "a".repeat(5_000))).contains("longer than 4096 bytes"));
    }

    #[test]
    fn a_cursor_serves_its_own_query_only() {
        let first = ListQuery::parse_at("remote=a&older_than=10&sort=-size&limit=3", 1_000).expect("good");
        let position = Position {
            value: SortValue::Number(5),
            row: 9,
        };
        let cursor = first.cursor(&position);
        let next = ListQuery::parse_at(
            &format!("cursor={cursor}&sort=-size&older_than=10&remote=a&limit=9"),
            2_000,
        );
        let next = next.expect("the limit may change, and the order of parameters");
        assert_eq!(next.after, Some(position));
        assert_eq!(
            next.filter.seen_before,
            Some(990),
            "the first page's moment holds for all"
        );
        for other in [
            "remote=b&older_than=10&sort=-size",
            "remote=a&older_than=10&sort=size",
            "older_than=10&sort=-size",
        ] {
            assert!(refused(&format!("{other}&cursor={cursor}")).contains("`cursor`"));
        }
    }

    #[test]
    fn globs_and_patterns() {
        for (query, path, expected) in [
            ("glob=*.whl", "packages/a/x.whl", true),
            ("glob=*.whl", "x.whl", true),
            ("glob=*.whl", "x.whl.metadata", false),
            ("glob=packages/*.whl", "packages/a/x.whl", false),
            ("glob=packages/**/*.whl", "packages/a/b/x.whl", true),
            ("glob=/packages/**", "packages/a/b/x.whl", true),
            ("glob=x.{whl,zip}", "a/x.zip", true),
            ("pattern=b/x", "packages/a/b/x.whl", true),
            ("pattern=^a", "packages/a", false),
            ("prefix=pack", "packages/a", true),
            ("prefix=ack", "packages/a", false),
        ] {
            let filter = ListQuery::parse(query).expect(query).filter;
            assert_eq!(filter.covers("r", Class::Mutable, path), expected, "{query} {path}");
        }
    }

    #[test]
    fn a_pattern_is_looked_for_where_its_beginning_can_be() {
        for (pattern, prefix) in [
            ("^packages/a/", Some("packages/a/")),
            (r"^a/x\.whl$", Some("a/x.whl")),
            ("^@scope%2Fname", Some("@scope%2Fname")),
            ("^ab?c", Some("a")),
            ("^ab*", Some("a")),
            ("^ab{0,2}", Some("a")),
            ("^ab+", Some("ab")),
            ("^ab+?", Some("ab")),
            ("^ab+??", Some("a")),
            ("^ab+*", Some("a")),
            (r"^a\d", Some("a")),
            (r"^a\-*b", Some("a")),
            ("^a(b|c)", None),
            ("^a|b", None),
            ("^[ab]c", None),
            ("(?i)^ab", None),
            ("^(?i)ab", None),
            ("ab", None),
            ("^", None),
        ] {
            let narrowed = |prefix: Option<&str>| {
                let filter = Filter {
                    pattern: Some(Regex::new(pattern).expect(pattern)),
                    prefix: prefix.map(str::to_owned),
                    ..Filter::default()
                };
                filter.narrowed().prefix
            };
            assert_eq!(narrowed(None).as_deref(), prefix, "{pattern}");
            assert_eq!(narrowed(Some("zz")).as_deref(), Some("zz"), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn what_a_pattern_matches_has_its_prefix(
            pattern in r"\^[ab/?*+{}()|.\\2-]{0,8}",
            path in "[ab/2.-]{0,8}",
        ) {
            if let Ok(regex) = Regex::new(&pattern) && regex.is_match(&path) {
                let filter = Filter { pattern: Some(regex), ..Filter::default() }.narrowed();
                prop_assert!(filter.path_matches(&path), "{pattern} {path} {:?}", filter.prefix);
            }
        }

        #[test]
        fn the_end_of_a_prefix_is_right_behind_it(prefix in any::<String>(), tail in any::<String>(), other in any::<String>()) {
            let filter = Filter { prefix: Some(prefix.clone()), ..Filter::default() };
            let inside = format!("{prefix}{tail}");
            if let Some(end) = filter.prefix_end() {
                prop_assert!(inside < end);
                prop_assert!(other.starts_with(&prefix) || other < prefix || other >= end);
            } else {
                prop_assert!(prefix.chars().all(|c| c == char::MAX));
            }
        }

        #[test]
        fn any_query_is_read_or_refused(text in any::<String>()) {
            let _ = ListQuery::parse(&text);
        }
    }
}
