//! YAML text to a tree whose every node knows where it stood. The parser is `saphyr-parser`; this file adds what a
//! configuration needs: positions, duplicate keys, anchors and merge keys within bounds, and the reading of escapes
//! that YAML does not have.
//!
//! **Escapes.** `"\.tgz$"` is no YAML, yet it is how patterns are often written. In a double-quoted scalar the last
//! backslash of an odd run starts an escape. So before parsing, every such backslash that is followed by something YAML
//! has no escape for is replaced by a stand-in, one character for one character, so that no position moves. Outside
//! double quotes a backslash and the stand-in are both ordinary characters, so the replacement needs no knowledge of
//! where quotes begin. After parsing the stand-in becomes the backslash again, and where it stood in a double-quoted
//! scalar, a [`Note`] says so.

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use super::problem::{Fault, Pos};

/// Levels of nesting, counted through aliases too. A configuration needs five.
const MAX_DEPTH: usize = 32;
/// Nodes of one file.
const MAX_NODES: usize = 1_000_000;
/// Entries copied by all merge keys of one file together.
const MAX_MERGED: usize = 1_000_000;

/// A parsed file.
pub(super) struct Document {
    /// `None` for an empty file.
    pub root: Option<Rc<Node>>,
    /// What is well-formed but not supported.
    pub errors: Vec<(Pos, Fault)>,
    /// Double-quoted scalars with escapes that YAML does not have.
    pub notes: Vec<Note>,
}

/// A double-quoted scalar with an escape that YAML does not have: read as a backslash and the character after it.
pub(super) struct Note {
    /// Of the scalar.
    pub scalar: Pos,
    /// Of the first such escape.
    pub at: Pos,
    /// Backslash and character.
    pub escape: String,
    /// How to write the scalar, if every escape in it was meant as written.
    pub spelling: Option<Spelling>,
}

/// Two ways to write one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spelling {
    pub single: String,
    pub double: String,
}

impl Spelling {
    pub(super) fn of(text: &str) -> Self {
        Spelling {
            single: format!("'{}'", text.replace('\'', "''")),
            double: format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        }
    }
}

/// A value. Aliases share nodes, so that a file of aliases of aliases stays as small as it is.
pub(super) struct Node {
    pub at: Pos,
    pub content: Content,
    depth: usize,
}

pub(super) enum Content {
    Scalar(Scalar),
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

pub(super) struct Scalar {
    pub text: String,
    /// Written so that it can be nothing but a string.
    pub quoted: bool,
    /// The first escape that YAML knows and that stands for another character than itself (`\b`, `\t`, `\x41` …).
    pub translated: Option<Translated>,
}

pub(super) struct Translated {
    pub at: Pos,
    pub escape: String,
    pub spelling: Option<Spelling>,
}

pub(super) struct Entry {
    pub key: String,
    /// Of the key.
    pub at: Pos,
    pub value: Rc<Node>,
    /// Where the same key stood first.
    pub duplicate_of: Option<Pos>,
}

impl Node {
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar(s)
            if !s.quoted && matches!(s.text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.content, Content::Map(_))
    }

    /// For "… is a list".
    pub(super) fn kind(&self) -> &'static str {
        match &self.content {
            Content::Scalar(_) if self.is_null() => "empty",
            Content::Scalar(_) => "a single value",
            Content::List(_) => "a list",
            Content::Map(_) => "a mapping",
        }
    }
}

/// Parses one document.
///
/// # Errors
/// The first place at which the text is not YAML, or goes beyond a bound.
pub(super) fn parse(text: &str) -> Result<Document, (Pos, Fault)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut source: Vec<char> = text.chars().collect();
    // The scanner takes NUL for the end of the text and would silently drop the rest.
    if let Some(index) = source.iter().position(|&c| c == '\0') {
        return Err((position(&source, index), Fault::new("a NUL character is not allowed")));
    }
    let stand_in = replace_unknown_escapes(text, &mut source);
    Builder::new(&source, stand_in).run()
}

/// The place of a character.
fn position(source: &[char], index: usize) -> Pos {
    let mut at = Pos { line: 1, column: 1 };
    for i in 0..index {
        advance(&mut at, source[i], source.get(i + 1).copied());
    }
    at
}

/// Goes over `c`. As the parser counts: a lone carriage return ends a line too.
fn advance(at: &mut Pos, c: char, next: Option<char>) {
    if c == '\n' || (c == '\r' && next != Some('\n')) {
        *at = Pos {
            line: at.line + 1,
            column: 1,
        };
    } else {
        at.column += 1;
    }
}

/// Puts a stand-in for each backslash that would start an escape YAML does not have; see the module's description.
fn replace_unknown_escapes(text: &str, source: &mut [char]) -> Option<char> {
    if !text.contains('\\') {
        return None;
    }
    // Private-use characters; one that the text does not hold, neither itself nor spelled as `\uXXXX`.
    let upper = text.to_ascii_uppercase();
    let free = |c: &char| !text.contains(*c) && !upper.contains(&format!("{:X}", *c as u32));
    let stand_in = ('\u{f8e0}'..='\u{f8ff}').find(free)?;
    let mut index = 0;
    while index < source.len() {
        if source[index] != '\\' {
            index += 1;
        } else if is_yaml_escape(&source[index + 1..]) {
            index += 2;
        } else {
            source[index] = stand_in;
            index += 1;
        }
    }
    Some(stand_in)
}

/// Whether a backslash before `rest` makes an escape of YAML 1.2. The end of a line is one: it joins lines.
fn is_yaml_escape(rest: &[char]) -> bool {
    let hex = |digits: usize| {
        let code = rest.get(1..=digits).map(|d| d.iter().collect::<String>());
        code.is_some_and(|d| {
            u32::from_str_radix(&d, 16).is_ok_and(|c| !d.starts_with('+') && char::from_u32(c).is_some())
        })
    };
    match rest.first() {
        None => true,
        Some('x') => hex(2),
        Some('u') => hex(4),
        Some('U') => hex(8),
        Some(c) => "0abt\tnvfre \"/\\N_LP\n\r".contains(*c),
    }
}

/// A collection that is being read.
struct Frame {
    at: Pos,
    anchor: usize,
    depth: usize,
    content: Open,
}

enum Open {
    List(Vec<Rc<Node>>),
    Map {
        entries: Vec<Entry>,
        seen: HashMap<String, Pos>,
        merges: Vec<Rc<Node>>,
        key: Option<Key>,
    },
}

/// A key whose value comes next.
enum Key {
    Text(String, Pos),
    Merge(Pos),
    /// Reported already.
    Unusable,
}

struct Builder<'s> {
    source: &'s [char],
    /// Of the text.
    end: Pos,
    stand_in: Option<char>,
    anchors: HashMap<usize, Rc<Node>>,
    stack: Vec<Frame>,
    nodes: usize,
    merged: usize,
    document: Document,
}

impl<'s> Builder<'s> {
    fn new(source: &'s [char], stand_in: Option<char>) -> Self {
        Builder {
            source,
            end: position(source, source.len()),
            stand_in,
            anchors: HashMap::new(),
            stack: Vec::new(),
            nodes: 0,
            merged: 0,
            document: Document {
                root: None,
                errors: Vec::new(),
                notes: Vec::new(),
            },
        }
    }

    fn run(mut self) -> Result<Document, (Pos, Fault)> {
        let mut parser = Parser::new_from_iter(self.source.iter().copied());
        let mut documents = 0;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| {
                let at = self.place(*error.marker());
                (at, Fault::new(format!("not valid YAML: {}", error.info())))
            })?;
            let at = self.place(span.start);
            match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        let fault = Fault::new("a second YAML document begins here");
                        return Err((at, fault.hint("one file holds one document: remove the `---`")));
                    }
                }
                Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_deref(), span)?,
                Event::SequenceStart(anchor, tag) => {
                    self.collection_tag(at, tag.as_deref(), "seq");
                    self.open(at, anchor, Open::List(Vec::new()))?;
                }
                Event::MappingStart(anchor, tag) => {
                    self.collection_tag(at, tag.as_deref(), "map");
                    let content = Open::Map {
                        entries: Vec::new(),
                        seen: HashMap::new(),
                        merges: Vec::new(),
                        key: None,
                    };
                    self.open(at, anchor, content)?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.close()?,
                Event::Alias(anchor) => match self.anchors.get(&anchor) {
                    Some(node) => {
                        let node = Rc::clone(node);
                        if self.stack.len() + node.depth > MAX_DEPTH {
                            return Err((at, Fault::new(format!("nested more than {MAX_DEPTH} levels deep"))));
                        }
                        self.add(at, node)?;
                    }
                    None => return Err((at, Fault::new("an alias inside of what it stands for"))),
                },
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
        Ok(self.document)
    }

    /// The parser lets a text end in a line of its own, which no editor shows.
    fn place(&self, marker: Marker) -> Pos {
        let at = Pos {
            line: marker.line().max(1),
            column: marker.col() + 1,
        };
        at.min(self.end)
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        span: Span,
    ) -> Result<(), (Pos, Fault)> {
        let at = self.place(span.start);
        let mut scalar = Scalar {
            text: text.to_owned(),
            quoted: style != ScalarStyle::Plain,
            translated: None,
        };
        if let Some(stand_in) = self.stand_in {
            scalar.text = scalar.text.replace(stand_in, "\\");
            if style == ScalarStyle::DoubleQuoted {
                scalar.translated = self.escapes(span, stand_in);
            }
        }
        match tag {
            None => {}
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => scalar.quoted = true,
            Some(tag)
                if tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "int" | "bool" | "null" | "float") =>
            {
                scalar.quoted = false;
            }
            Some(tag) => self.unsupported_tag(at, tag),
        }
        let node = Rc::new(Node {
            at,
            content: Content::Scalar(scalar),
            depth: 0,
        });
        self.anchor(anchor, &node);
        self.add(at, node)
    }

    /// Looks at a double-quoted scalar as it is written: notes escapes that YAML does not have, returns the first one
    /// that YAML translates.
    fn escapes(&mut self, span: Span, stand_in: char) -> Option<Translated> {
        let source = self.source.get(span.start.index()..)?;
        if source.first() != Some(&'"') {
            return None;
        }
        let mut meant = String::new();
        let (mut unknown, mut translated) = (None, None);
        let mut one_line = true;
        let mut at = self.place(span.start);
        advance(&mut at, '"', None);
        let mut index = 1;
        while let Some(&c) = source.get(index).filter(|&&c| c != '"') {
            let here = at;
            let next = source.get(index + 1).copied();
            advance(&mut at, c, next);
            index += 1;
            match (c, next) {
                ('\n' | '\r', _) => one_line = false,
                ('\\', Some(escaped)) => {
                    match escaped {
                        '\\' | '"' | '/' => meant.push(escaped),
                        '\n' | '\r' => one_line = false,
                        _ => {
                            translated.get_or_insert((here, format!("\\{escaped}")));
                            meant.extend(['\\', escaped]);
                        }
                    }
                    advance(&mut at, escaped, source.get(index + 1).copied());
                    index += 1;
                }
                (c, next) if c == stand_in => {
                    unknown.get_or_insert((here, next.map_or("\\".to_owned(), |next| format!("\\{next}"))));
                    meant.push('\\');
                }
                (c, _) => meant.push(c),
            }
        }
        let spelling = one_line.then(|| Spelling::of(&meant));
        if let Some((at, escape)) = unknown {
            self.document.notes.push(Note {
                scalar: self.place(span.start),
                at,
                escape,
                spelling: spelling.clone(),
            });
        }
        translated.map(|(at, escape)| Translated { at, escape, spelling })
    }

    fn collection_tag(&mut self, at: Pos, tag: Option<&Tag>, own: &str) {
        if let Some(tag) = tag.filter(|tag| !(tag.is_yaml_core_schema() && tag.suffix == own)) {
            self.unsupported_tag(at, tag);
        }
    }

    fn unsupported_tag(&mut self, at: Pos, tag: &Tag) {
        let fault = Fault::new(format!(
            "the tag {:?} is not supported",
            format!("{}{}", tag.handle, tag.suffix)
        ));
        self.document
            .errors
            .push((at, fault.hint("leave the tag out; quote a value that must be a string")));
    }

    fn open(&mut self, at: Pos, anchor: usize, content: Open) -> Result<(), (Pos, Fault)> {
        if self.stack.len() >= MAX_DEPTH {
            return Err((at, Fault::new(format!("nested more than {MAX_DEPTH} levels deep"))));
        }
        self.stack.push(Frame {
            at,
            anchor,
            depth: 0,
            content,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), (Pos, Fault)> {
        let Some(mut frame) = self.stack.pop() else {
            return Ok(());
        };
        let content = match frame.content {
            Open::List(items) => Content::List(items),
            Open::Map {
                mut entries,
                seen,
                merges,
                ..
            } => {
                self.merge(&mut entries, seen, &merges)?;
                // What was merged is no level of its own, its values are.
                frame.depth = entries.iter().map(|entry| entry.value.depth).max().unwrap_or(0);
                Content::Map(entries)
            }
        };
        let node = Rc::new(Node {
            at: frame.at,
            content,
            depth: frame.depth + 1,
        });
        self.anchor(frame.anchor, &node);
        self.add(frame.at, node)
    }

    fn anchor(&mut self, anchor: usize, node: &Rc<Node>) {
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(node));
        }
    }

    /// Gives a finished node to the collection it stands in.
    fn add(&mut self, at: Pos, node: Rc<Node>) -> Result<(), (Pos, Fault)> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err((at, Fault::new(format!("more than {MAX_NODES} values in one file"))));
        }
        let Some(frame) = self.stack.last_mut() else {
            self.document.root = Some(node);
            return Ok(());
        };
        let is_merge = matches!(
            &frame.content,
            Open::Map {
                key: Some(Key::Merge(_)),
                ..
            }
        );
        if !is_merge {
            frame.depth = frame.depth.max(node.depth);
        }
        match &mut frame.content {
            Open::List(items) => items.push(node),
            Open::Map {
                entries,
                seen,
                merges,
                key,
            } => match key.take() {
                None => {
                    *key = Some(match &node.content {
                        Content::Scalar(s) if s.text == "<<" && !s.quoted => Key::Merge(at),
                        Content::Scalar(s) => Key::Text(s.text.clone(), at),
                        Content::List(_) | Content::Map(_) => {
                            self.document
                                .errors
                                .push((at, Fault::new("a key must be a single value")));
                            Key::Unusable
                        }
                    });
                }
                Some(Key::Text(text, key_at)) => {
                    let duplicate_of = seen.get(&text).copied();
                    seen.entry(text.clone()).or_insert(key_at);
                    entries.push(Entry {
                        key: text,
                        at: key_at,
                        value: node,
                        duplicate_of,
                    });
                }
                Some(Key::Merge(key_at)) => {
                    let sources = match &node.content {
                        Content::List(items) => items.clone(),
                        _ => vec![node],
                    };
                    let usable = sources.iter().all(|source| matches!(source.content, Content::Map(_)));
                    if !merges.is_empty() {
                        let fault = Fault::new("a second `<<` in one mapping");
                        self.document
                            .errors
                            .push((key_at, fault.hint("merge several with `<<: [*one, *two]`")));
                    } else if usable {
                        *merges = sources;
                    } else {
                        let fault = Fault::new("`<<` merges mappings, and this is none");
                        self.document.errors.push((
                            key_at,
                            fault.hint("write `<<: *anchor`, where `&anchor` names a mapping"),
                        ));
                    }
                }
                Some(Key::Unusable) => {}
            },
        }
        Ok(())
    }

    /// Adds what a mapping takes from others: its own keys win, then those of the first.
    fn merge(
        &mut self,
        entries: &mut Vec<Entry>,
        mut seen: HashMap<String, Pos>,
        sources: &[Rc<Node>],
    ) -> Result<(), (Pos, Fault)> {
        for source in sources {
            let Content::Map(others) = &source.content else {
                continue;
            };
            self.merged += others.len();
            if self.merged > MAX_MERGED {
                return Err((source.at, Fault::new("merge keys copy too much")));
            }
            for other in others {
                if other.duplicate_of.is_none() && !seen.contains_key(&other.key) {
                    seen.insert(other.key.clone(), other.at);
                    let value = Rc::clone(&other.value);
                    entries.push(Entry {
                        key: other.key.clone(),
                        at: other.at,
                        value,
                        duplicate_of: None,
                    });
                }
            }
        }
        Ok(())
    }
}
