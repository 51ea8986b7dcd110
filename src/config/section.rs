//! Reading one mapping of a file: known keys only, each with its type, every complaint with its place.

use std::rc::Rc;
use std::time::Duration;

use super::context::Context;
use super::problem::{Fault, Pos};
use super::values::{self, nearest, shown};
use super::yaml::{Content, Entry, Node, Scalar};

/// A mapping whose keys have been checked.
pub(super) struct Section<'a> {
    pub cx: Context<'a>,
    entries: &'a [Entry],
    /// Stands before a key in messages: `cache.` or nothing.
    prefix: String,
}

/// A scalar with `${NAME}` filled in.
pub(super) struct Text {
    pub value: String,
    pub at: Pos,
    pub quoted: bool,
    /// The text that stands in the file: for messages, since the environment's part may be a secret.
    pub source: String,
}

/// Keys that stand at another place than where they were found, for the hint.
pub(super) type Elsewhere<'e> = &'e [(&'static str, &'e str)];

impl<'a> Section<'a> {
    /// Takes `node` for a mapping with the keys `known`. Complains of all others, and of repeated ones.
    pub(super) fn open(
        cx: Context<'a>,
        node: &'a Node,
        prefix: &str,
        known: &[&'static str],
        elsewhere: Elsewhere<'_>,
    ) -> Self {
        let entries: &[Entry] = match &node.content {
            Content::Map(entries) => entries,
            _ if node.is_null() => &[],
            _ => {
                let name = match prefix.trim_end_matches('.') {
                    "" => "this".to_owned(),
                    name => format!("`{name}`"),
                };
                let fault = Fault::new(format!("{name} must be a mapping, and is {}", node.kind()));
                cx.error(node.at, fault.hint(format!("its keys are {}", known.join(", "))));
                &[]
            }
        };
        for entry in entries {
            if let Some(first) = entry.duplicate_of {
                let fault = Fault::new(format!("`{prefix}{}` stands here twice", entry.key));
                cx.error(
                    entry.at,
                    fault.hint(format!("it stands first in line {}: remove one", first.line)),
                );
            } else if !known.contains(&entry.key.as_str()) {
                let fault = Fault::new(format!("unknown key `{prefix}{}`", entry.key));
                cx.error(entry.at, fault.hint(Self::unknown_hint(&entry.key, known, elsewhere)));
            }
        }
        Section {
            cx,
            entries,
            prefix: prefix.to_owned(),
        }
    }

    fn unknown_hint(key: &str, known: &[&'static str], elsewhere: Elsewhere<'_>) -> String {
        if let Some((_, place)) = elsewhere.iter().find(|(other, _)| *other == key) {
            return format!("`{key}` belongs {place}");
        }
        match nearest(key, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the keys here are {}", known.join(", ")),
        }
    }

    /// The entry of `key`; `null` counts as absent.
    pub(super) fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.entries
            .iter()
            .find(|entry| entry.key == key && entry.duplicate_of.is_none() && !entry.value.is_null())
    }

    /// Whether `key` stands here, be it with `null`.
    pub(super) fn names(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// Whether `key` holds exactly this text.
    pub(super) fn says(&self, key: &str, text: &str) -> bool {
        self.entry(key)
            .is_some_and(|entry| matches!(&entry.value.content, Content::Scalar(s) if s.text == text))
    }

    fn name(&self, key: &str) -> String {
        format!("`{}{key}`", self.prefix)
    }

    fn scalar(&self, key: &str) -> Option<(&'a Node, &'a Scalar)> {
        let entry = self.entry(key)?;
        match &entry.value.content {
            Content::Scalar(scalar) => Some((&entry.value, scalar)),
            _ => {
                let fault = format!(
                    "{} must be a single value, and is {}",
                    self.name(key),
                    entry.value.kind()
                );
                self.cx.error(entry.value.at, Fault::new(fault));
                None
            }
        }
    }

    fn fill_in(&self, key: &str, at: Pos, scalar: &Scalar) -> Option<Text> {
        match values::interpolate(&scalar.text, self.cx.env) {
            Ok(filled) => {
                if let (true, Some(remote)) = (filled.changed, self.cx.remote) {
                    self.cx.report.interpolated(remote, key, &scalar.text);
                }
                let (quoted, source) = (scalar.quoted, scalar.text.clone());
                Some(Text {
                    value: filled.text,
                    at,
                    quoted,
                    source,
                })
            }
            Err(fault) => {
                self.cx.error(at, fault.about(self.name(key)));
                None
            }
        }
    }

    /// The text of `key`.
    pub(super) fn text(&self, key: &str) -> Option<Text> {
        let (node, scalar) = self.scalar(key)?;
        self.fill_in(key, node.at, scalar)
    }

    /// The text of `key`, made into something by `parse`, whose complaint gets key, value and place.
    pub(super) fn parse<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        self.convert(key, self.text(key)?, parse)
    }

    fn convert<T>(&self, key: &str, text: Text, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        match parse(&text.value) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.cx.error(
                    text.at,
                    fault.about(format_args!("{} {}", self.name(key), shown(&text.source))),
                );
                None
            }
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        let text = self.text(key)?;
        let found = match text.value.as_str() {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        };
        let fault = match found {
            Some(value) if !text.quoted => return Some(value),
            Some(value) => Fault::new(format!("{} must be true or false, and is a string", self.name(key)))
                .hint(format!("write {value} without quotes")),
            None => Fault::new(format!(
                "{} must be true or false, not {}",
                self.name(key),
                shown(&text.source)
            ))
            .hint("write true or false, without quotes"),
        };
        self.cx.error(text.at, fault);
        None
    }

    pub(super) fn integer(&self, key: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let text = self.text(key)?;
        self.integer_of(key, text, range)
    }

    fn integer_of(&self, key: &str, text: Text, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let quoted = text.quoted;
        self.convert(key, text, |text| {
            if quoted && text.parse::<u32>().is_ok() {
                return Err(Fault::new("must be a number, and is a string").hint("write it without quotes"));
            }
            let number = text
                .parse::<u32>()
                .ok()
                .filter(|n| range.contains(n) && !text.starts_with('+'));
            number.ok_or_else(|| {
                Fault::new(format!(
                    "must be a whole number from {} to {}",
                    range.start(),
                    range.end()
                ))
            })
        })
    }

    pub(super) fn duration(&self, key: &str) -> Option<Duration> {
        self.parse(key, values::duration)
    }

    /// A duration that something must happen within.
    pub(super) fn timeout(&self, key: &str) -> Option<Duration> {
        self.parse(key, |text| match values::duration(text)? {
            Duration::ZERO => Err(Fault::new("must be longer than nothing")),
            duration => Ok(duration),
        })
    }

    /// The items of the list `key`.
    pub(super) fn items(&self, key: &str) -> Option<&'a [Rc<Node>]> {
        let entry = self.entry(key)?;
        match &entry.value.content {
            Content::List(items) => Some(items),
            _ => {
                let fault = format!("{} must be a list, and is {}", self.name(key), entry.value.kind());
                self.cx
                    .error(entry.value.at, Fault::new(fault).hint(format!("write `{key}: [ … ]`")));
                None
            }
        }
    }

    /// The scalars of the list `key`, as they stand in the file.
    pub(super) fn scalars(&self, key: &'a str) -> Option<impl Iterator<Item = (Pos, &'a Scalar)>> {
        let items = self.items(key)?;
        Some(items.iter().filter_map(|item| match &item.content {
            Content::Scalar(scalar) if !item.is_null() => Some((item.at, scalar)),
            _ => {
                let fault = format!(
                    "an item of {} must be a single value, and is {}",
                    self.name(key),
                    item.kind()
                );
                self.cx.error(item.at, Fault::new(fault));
                None
            }
        }))
    }

    /// The list `key`, each item made into something by `parse`, with its place.
    pub(super) fn list<T>(&self, key: &'a str, parse: impl Fn(&str) -> Result<T, Fault>) -> Option<Vec<(Pos, T)>> {
        let scalars = self.scalars(key)?;
        let texts = scalars.filter_map(|(at, scalar)| self.fill_in(key, at, scalar));
        Some(
            texts
                .filter_map(|text| Some((text.at, self.convert(key, text, &parse)?)))
                .collect(),
        )
    }

    /// The items of the list `key`, each made into something by `parse`, without those that stand there already.
    pub(super) fn distinct<T: PartialEq>(&self, key: &'a str, parse: impl Fn(&str) -> Result<T, Fault>) -> Vec<T> {
        let mut distinct = Vec::new();
        for (_, item) in self.list(key, parse).unwrap_or_default() {
            if !distinct.contains(&item) {
                distinct.push(item);
            }
        }
        distinct
    }

    /// The list `key` of numbers.
    pub(super) fn integers(&self, key: &'a str, range: std::ops::RangeInclusive<u32>) -> Option<Vec<u32>> {
        let scalars = self.scalars(key)?;
        let texts = scalars.filter_map(|(at, scalar)| self.fill_in(key, at, scalar));
        Some(
            texts
                .filter_map(|text| self.integer_of(key, text, range.clone()))
                .collect(),
        )
    }

    /// The mapping `key`, its keys checked.
    pub(super) fn section(&self, key: &str, known: &[&'static str]) -> Option<Section<'a>> {
        let entry = self.entry(key)?;
        Some(Section::open(self.cx, &entry.value, &format!("{key}."), known, &[]))
    }

    /// The entries of the mapping `key`, whose keys are the user's own.
    pub(super) fn free(&self, key: &str) -> Option<&'a [Entry]> {
        let entry = self.entry(key)?;
        match &entry.value.content {
            Content::Map(entries) => Some(entries),
            _ => {
                let fault = format!("{} must be a mapping, and is {}", self.name(key), entry.value.kind());
                self.cx.error(
                    entry.value.at,
                    Fault::new(fault).hint(format!("write `{key}: {{name: value}}`")),
                );
                None
            }
        }
    }

    /// The text of an entry of [`Self::free`].
    pub(super) fn free_text(&self, key: &str, entry: &'a Entry) -> Option<Text> {
        match &entry.value.content {
            Content::Scalar(scalar) if !entry.value.is_null() => self.fill_in(key, entry.value.at, scalar),
            _ => {
                let fault = format!(
                    "`{key}.{}` must be a single value, and is {}",
                    entry.key,
                    entry.value.kind()
                );
                self.cx.error(entry.value.at, Fault::new(fault));
                None
            }
        }
    }
}
