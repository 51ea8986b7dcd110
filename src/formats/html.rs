//! A streaming HTML tokenizer for indexes that package managers read.
//!
//! They read them by parsers of many kinds and ages, which disagree about everything that is not plainly written. So what
//! goes out is written in such a way that all of them read it alike: a `<` begins nothing but a tag of letters, names and
//! quoted values, each attribute once. Comments and the text of elements that hold text only keep no markup. What is
//! plainly written passes as it stands.

use memchr::memchr;

use super::IndexError;

/// The most that is held: one tag with its attributes.
pub(super) const MAX_TAG: usize = 1 << 20;
/// The longest name of an end tag, and document type; longer ones are dropped.
const MAX_NAME: usize = 1024;
/// Attributes of one tag; further ones are dropped.
const MAX_ATTRIBUTES: usize = 256;

/// Elements whose content is text to some parser, whatever it looks like. (`noscript` is one only where scripts run.)
const TEXT_ONLY: [&[u8]; 9] = [
    b"script",
    b"style",
    b"title",
    b"textarea",
    b"xmp",
    b"iframe",
    b"noembed",
    b"noframes",
    b"plaintext",
];

/// What becomes of an attribute's value, as written between its quotes.
pub(super) enum Value {
    Kept,
    /// In the text of the document, which is no attribute's yet.
    Replaced(String),
    Dropped,
}

/// Reads start tags, and decides what becomes of their attributes.
pub(super) trait Change {
    /// A start tag begins; the name of its element is as written.
    fn begin(&mut self, _element: &[u8]) {}

    /// An attribute of it: the element's and its own name, both as written, and its value, empty where it has none.
    fn attribute(&mut self, element: &[u8], name: &[u8], value: &[u8]) -> Value;
}

impl<F: FnMut(&[u8], &[u8], &[u8]) -> Value> Change for F {
    fn attribute(&mut self, element: &[u8], name: &[u8], value: &[u8]) -> Value {
        self(element, name, value)
    }
}

/// Where the tokenizer is in what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// From a `<` on, undecided.
    Open,
    /// A start tag.
    Tag(Part),
    /// Up to the next `>`, and nothing of it goes out: an end tag's rest, or a comment that is none.
    Skipped,
    Comment(Dashes),
}

/// Where in a start tag (HTML, sections 13.2.5.8 to 13.2.5.40).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Name,
    Between,
    Attribute,
    /// Behind an attribute's name.
    Named,
    /// Behind its `=`.
    Value,
    Unquoted,
    Quoted(u8),
}

/// Whether the end of a comment has begun. Those that stand here were not written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dashes {
    count: usize,
    /// Behind the dashes, a `!`.
    bang: bool,
    /// Nothing else has come: a `>` ends the comment now.
    start: bool,
}

/// One attribute of the tag that is held, by where it stands there.
#[derive(Debug, Clone, Copy)]
struct Attribute {
    name: (usize, usize),
    value: Option<(usize, usize)>,
    /// 0 without one.
    quote: u8,
}

/// The tokenizer.
pub(super) struct Tokenizer {
    state: State,
    /// The beginning of what is not decided yet.
    held: Vec<u8>,
    /// How far that is read.
    at: usize,
    name: usize,
    attributes: Vec<Attribute>,
    /// Where the attribute or value that is read began.
    begin: usize,
    /// The element of [`TEXT_ONLY`] whose text this is.
    inside: Option<&'static [u8]>,
}

impl Tokenizer {
    pub(super) fn new() -> Self {
        Tokenizer {
            state: State::Text,
            held: Vec::new(),
            at: 0,
            name: 0,
            attributes: Vec::new(),
            begin: 0,
            inside: None,
        }
    }

    /// Takes the next piece.
    pub(super) fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>, change: &mut dyn Change) -> Result<(), IndexError> {
        out.reserve(chunk.len());
        if self.held.is_empty() {
            let read = self.read(chunk, out, change);
            self.held.extend_from_slice(&chunk[read..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(chunk);
            let read = self.read(&held, out, change);
            held.drain(..read);
            self.held = held;
        }
        if self.held.len() > MAX_TAG {
            return Err(IndexError(format!(
                "upstream's index has a tag longer than {MAX_TAG} bytes"
            )));
        }
        Ok(())
    }

    fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>, change: &mut dyn Change) -> usize {
        let mut from = 0;
        while from < bytes.len()
            && let Some(length) = self.token(&bytes[from..], out, change)
        {
            from += length;
        }
        from
    }

    /// The document is complete. A tag that is not is none.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        match self.state {
            State::Comment(_) => out.extend_from_slice(b"-->"),
            State::Open if self.inside.is_some() || self.held == b"<" => write_text(&self.held, out),
            _ => {}
        }
        self.held.clear();
    }

    /// Reads from the start of `bytes`: how much of them is done with. `None` wants more.
    fn token(&mut self, bytes: &[u8], out: &mut Vec<u8>, change: &mut dyn Change) -> Option<usize> {
        match self.state {
            State::Text => {
                let end = memchr(b'<', bytes).unwrap_or(bytes.len());
                out.extend_from_slice(&bytes[..end]);
                if end < bytes.len() {
                    self.state = State::Open;
                }
                Some(end)
            }
            State::Open => self.open(bytes, out),
            State::Tag(part) => {
                let end = self.tag(part, bytes)?;
                self.write_tag(&bytes[..end], out, change);
                Some(end)
            }
            State::Skipped => {
                let end = memchr(b'>', bytes).unwrap_or(bytes.len());
                if end == bytes.len() {
                    return Some(end);
                }
                self.state = State::Text;
                Some(end + 1)
            }
            State::Comment(dashes) => Some(self.comment(dashes, bytes, out)),
        }
    }

    /// Decides what a `<` begins.
    fn open(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        if let Some(element) = self.inside {
            return self.open_in_text(element, bytes, out);
        }
        match *bytes.get(1)? {
            b'!' => {
                let is = |start: &[u8]| {
                    let length = start.len().min(bytes.len());
                    bytes[..length]
                        .eq_ignore_ascii_case(&start[..length])
                        .then_some(length == start.len())
                };
                match (is(b"<!--"), is(b"<!doctype")) {
                    (Some(true), _) => {
                        out.extend_from_slice(b"<!--");
                        self.state = State::Comment(Dashes {
                            count: 0,
                            bang: false,
                            start: true,
                        });
                        Some(4)
                    }
                    (_, Some(true)) => {
                        let end = memchr(b'>', bytes).unwrap_or(bytes.len());
                        if end == bytes.len() && end <= MAX_NAME {
                            return None;
                        }
                        let plain = end < bytes.len() && !bytes[1..end].contains(&b'<');
                        out.extend_from_slice(if plain { &bytes[..=end] } else { b"<!DOCTYPE html>" });
                        self.skip(end)
                    }
                    (None, None) => self.skip(2),
                    _ => None,
                }
            }
            b'?' => self.skip(2),
            b'/' => match bytes.get(2)? {
                letter if letter.is_ascii_alphabetic() => {
                    let Some(end) = bytes.iter().skip(2).position(|byte| is_name_end(*byte)) else {
                        return if bytes.len() > MAX_NAME { self.skip(2) } else { None };
                    };
                    if is_plain_name(&bytes[2..2 + end]) {
                        out.extend_from_slice(&bytes[..2 + end]);
                        out.push(b'>');
                    }
                    self.skip(2 + end)
                }
                _ => self.skip(2),
            },
            letter if letter.is_ascii_alphabetic() => {
                self.attributes.clear();
                (self.name, self.at) = (0, 1);
                self.state = State::Tag(Part::Name);
                Some(0)
            }
            _ => {
                out.extend_from_slice(b"&lt;");
                self.state = State::Text;
                Some(1)
            }
        }
    }

    fn skip(&mut self, length: usize) -> Option<usize> {
        self.state = State::Skipped;
        Some(length)
    }

    /// Decides what a `<` begins in an element that holds text: only its own end tag is one.
    fn open_in_text(&mut self, element: &'static [u8], bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let name = bytes.get(2..).unwrap_or_default();
        let compared = name.len().min(element.len());
        let same = bytes.get(1).is_none_or(|byte| *byte == b'/')
            && name[..compared].eq_ignore_ascii_case(&element[..compared]);
        if same && name.len() <= element.len() {
            return None;
        }
        if same && is_name_end(name[element.len()]) {
            self.inside = None;
            let end = 2 + element.len();
            out.extend_from_slice(&bytes[..end]);
            out.push(b'>');
            return self.skip(end);
        }
        out.extend_from_slice(b"&lt;");
        self.state = State::Text;
        Some(1)
    }

    /// Reads on in a start tag: its length, when it is there.
    fn tag(&mut self, mut part: Part, bytes: &[u8]) -> Option<usize> {
        let mut at = self.at;
        let ended = loop {
            let Some(&byte) = bytes.get(at) else { break false };
            let space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c');
            part = match part {
                Part::Name if space || matches!(byte, b'/' | b'>') => {
                    self.name = at;
                    Part::Between
                }
                Part::Between if space || byte == b'/' => {
                    at += 1;
                    Part::Between
                }
                Part::Between if byte == b'>' => break true,
                // Even a `=` is part of a name here.
                Part::Between => {
                    self.begin = at;
                    at += 1;
                    Part::Attribute
                }
                Part::Attribute if space || matches!(byte, b'/' | b'>' | b'=') => {
                    if self.attributes.len() <= MAX_ATTRIBUTES {
                        self.attributes.push(Attribute {
                            name: (self.begin, at),
                            value: None,
                            quote: 0,
                        });
                    }
                    Part::Named
                }
                Part::Named if space => {
                    at += 1;
                    Part::Named
                }
                Part::Named if byte == b'=' => {
                    at += 1;
                    Part::Value
                }
                Part::Named => Part::Between,
                Part::Value if space => {
                    at += 1;
                    Part::Value
                }
                Part::Value if matches!(byte, b'"' | b'\'') => {
                    at += 1;
                    self.begin = at;
                    Part::Quoted(byte)
                }
                Part::Value => {
                    self.begin = at;
                    Part::Unquoted
                }
                Part::Unquoted if space || byte == b'>' => {
                    self.value(at, 0);
                    Part::Between
                }
                Part::Quoted(quote) => {
                    at = memchr(quote, &bytes[at..]).map_or(bytes.len(), |found| at + found);
                    self.quoted(bytes, &mut at, quote)
                }
                Part::Name | Part::Attribute | Part::Unquoted => {
                    at += 1;
                    part
                }
            };
        };
        self.at = at;
        self.state = State::Tag(part);
        ended.then_some(at + 1)
    }

    fn quoted(&mut self, bytes: &[u8], at: &mut usize, quote: u8) -> Part {
        if *at == bytes.len() {
            return Part::Quoted(quote);
        }
        self.value(*at, quote);
        *at += 1;
        Part::Between
    }

    fn value(&mut self, end: usize, quote: u8) {
        if let Some(attribute) = self.attributes.last_mut().filter(|last| last.value.is_none()) {
            (attribute.value, attribute.quote) = (Some((self.begin, end)), quote);
        }
    }

    /// Writes the start tag that has come whole.
    fn write_tag(&mut self, tag: &[u8], out: &mut Vec<u8>, change: &mut dyn Change) {
        self.state = State::Text;
        let name = &tag[1..self.name];
        if !is_plain_name(name) {
            return;
        }
        out.push(b'<');
        out.extend_from_slice(name);
        change.begin(name);
        self.attributes.truncate(MAX_ATTRIBUTES);
        let text = |(from, to): (usize, usize)| &tag[from..to];
        for (number, attribute) in self.attributes.iter().enumerate() {
            let key = text(attribute.name);
            // Of two, some parsers take the first and some the last.
            let again = self.attributes[..number]
                .iter()
                .any(|other| text(other.name).eq_ignore_ascii_case(key));
            if again || !is_plain_name(key) {
                continue;
            }
            let value = attribute.value.map(text);
            match change.attribute(name, key, value.unwrap_or_default()) {
                Value::Dropped => continue,
                Value::Kept => {
                    out.push(b' ');
                    out.extend_from_slice(key);
                    if let Some(value) = value {
                        write_value(value, attribute.quote, out);
                    }
                }
                Value::Replaced(value) => {
                    out.push(b' ');
                    out.extend_from_slice(key);
                    write_value(value.replace('&', "&amp;").as_bytes(), b'"', out);
                }
            }
        }
        let closed = tag.ends_with(b"/>")
            && !self.attributes.last().is_some_and(|last| {
                // The slash belongs to a value that is not quoted.
                last.quote == 0 && last.value.is_some_and(|(_, end)| end + 1 == tag.len())
            });
        self.inside = TEXT_ONLY.into_iter().find(|known| known.eq_ignore_ascii_case(name));
        if !closed {
            out.push(b'>');
        } else if self.inside.take().is_none() {
            out.extend_from_slice(if self.attributes.is_empty() { b"/>" } else { b" />" });
        } else {
            // It is over at once to some parsers, and to others only at its end tag.
            out.extend_from_slice(b"></");
            out.extend_from_slice(name);
            out.push(b'>');
        }
    }

    /// Reads on in a comment, which keeps no angle bracket.
    fn comment(&mut self, mut dashes: Dashes, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        for (at, &byte) in bytes.iter().enumerate() {
            match byte {
                b'-' if !dashes.bang => {
                    dashes.count += 1;
                    continue;
                }
                b'!' if dashes.count >= 2 && !dashes.bang => {
                    (dashes.bang, dashes.start) = (true, false);
                    continue;
                }
                b'>' if dashes.bang || dashes.start || dashes.count >= 2 => {
                    out.extend(std::iter::repeat_n(b'-', dashes.count.saturating_sub(2)));
                    out.extend_from_slice(b"-->");
                    self.state = State::Text;
                    return at + 1;
                }
                _ => {}
            }
            out.extend(std::iter::repeat_n(b'-', dashes.count));
            if dashes.bang {
                out.push(b'!');
            }
            dashes = Dashes {
                count: usize::from(byte == b'-'),
                bang: false,
                start: false,
            };
            match byte {
                b'-' => {}
                b'<' => out.extend_from_slice(b"&lt;"),
                b'>' => out.extend_from_slice(b"&gt;"),
                _ => out.push(byte),
            }
        }
        self.state = State::Comment(dashes);
        bytes.len()
    }
}

fn is_name_end(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' | b'/' | b'>')
}

/// A name that ends in the same place to everybody.
fn is_plain_name(name: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(byte);
    !name.is_empty() && name.iter().all(plain)
}

fn write_value(value: &[u8], quote: u8, out: &mut Vec<u8>) {
    let bare = quote == 0 && !value.is_empty() && value.iter().all(|byte| byte.is_ascii_alphanumeric());
    let quote = if quote == 0 { b'"' } else { quote };
    out.push(b'=');
    if bare {
        out.extend_from_slice(value);
        return;
    }
    out.push(quote);
    for &byte in value {
        match byte {
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            b'"' if quote == b'"' => out.extend_from_slice(b"&quot;"),
            _ => out.push(byte),
        }
    }
    out.push(quote);
}

fn write_text(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        match byte {
            b'<' => out.extend_from_slice(b"&lt;"),
            _ => out.push(byte),
        }
    }
}
