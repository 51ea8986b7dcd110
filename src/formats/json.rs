//! A streaming JSON scanner (RFC 8259) that changes the strings at chosen places and copies everything else byte for
//! byte: key order, numbers, whitespace and escapes survive, a document of any size passes with bounded memory.
//!
//! Where no chosen place can be reached any more, only strings and brackets are looked at. That is enough to find the
//! end of such a part, in a document that is JSON; in one that is not, the client's own parser has the last word.

pub(super) mod whole;

use memchr::memchr2;

use super::links::LinkMap;
use super::{Fact, IndexError, IndexReader};

/// Nesting that is followed; deeper documents are refused. It bounds memory, two bytes a level; clients follow less.
const MAX_DEPTH: usize = 1 << 20;
/// The longest string, as written, that is looked at for rewriting.
const MAX_CANDIDATE: usize = 64 * 1024;
/// The longest key, as written, that is compared with a step; longer ones only match [`Step::Any`].
const MAX_KEY: usize = 1024;

/// One step from a value to one inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The member of an object with this name, in letters of either case: to Go, they are one.
    Key(&'static str),
    /// Any member of an object, or any element of an array, which is an object to JavaScript.
    Any,
    /// Any element of an array.
    Item,
}

/// The steps from the document to a string, or to an array with strings in it, which JavaScript takes for one; at most
/// eight places are looked for at once.
pub type Place = &'static [Step];

/// Whether a name is `wanted` to Go's `encoding/json`: letters of either case are one, and so are the two that Unicode
/// folds to ASCII letters.
pub fn same_name(name: &str, wanted: &str) -> bool {
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    name == wanted || name.chars().map(fold).eq(wanted.chars().map(fold))
}

/// What the grammar allows next, outside strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    /// The document is complete.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// Between tokens.
    None,
    /// A string that is copied.
    Plain,
    /// A name that is copied and compared.
    Key,
    /// A string that may be replaced: held back until it is complete.
    Candidate,
    /// A number, `true`, `false` or `null`.
    Scalar,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    object: bool,
    /// The places whose steps lead to this container, one bit each.
    alive: u8,
}

/// The scanner. It knows nothing of links: what a string becomes says the function given to [`Scanner::write`].
pub struct Scanner {
    places: &'static [Place],
    stack: Vec<Frame>,
    next: Next,
    token: Token,
    /// The places that lead to the value that comes next.
    alive: u8,
    /// A backslash was the last byte of the string so far.
    escape: bool,
    /// The beginning, as written, of a key or candidate that began in an earlier piece.
    held: Vec<u8>,
    overlong: bool,
    /// Bytes of earlier pieces, for messages.
    offset: u64,
    /// Bytes of a byte order mark seen.
    mark: usize,
}

impl Scanner {
    pub fn new(places: &'static [Place]) -> Self {
        debug_assert!(places.len() <= 8);
        Scanner {
            places,
            stack: Vec::new(),
            next: Next::Value,
            token: Token::None,
            alive: ((1_u16 << places.len().min(8)) - 1) as u8,
            escape: false,
            held: Vec::new(),
            overlong: false,
            offset: 0,
            mark: 0,
        }
    }

    /// Takes the next piece. `replace` is given each string at a chosen place, escapes resolved, and says what stands
    /// there instead, if anything.
    pub fn write(
        &mut self,
        chunk: &[u8],
        out: &mut Vec<u8>,
        replace: &mut dyn FnMut(&str) -> Option<String>,
    ) -> Result<(), IndexError> {
        out.reserve(chunk.len());
        let mut at = 0;
        // Everything before this is copied or replaced.
        let mut copied = 0;
        while at < chunk.len() {
            match self.token {
                Token::Scalar => {
                    let rest = &chunk[at..];
                    let length = rest.iter().position(|&byte| !is_scalar(byte)).unwrap_or(rest.len());
                    at += length;
                    if at < chunk.len() {
                        self.token = Token::None;
                        self.after_value();
                    }
                }
                Token::None if self.is_skipping() => self.skip(chunk, &mut at)?,
                Token::None => {
                    self.structure(chunk[at], at)?;
                    if self.token == Token::Candidate {
                        // The quotes are written with what stands between them.
                        out.extend_from_slice(&chunk[copied..at]);
                        copied = at + 1;
                    }
                    at += 1;
                }
                Token::Plain => {
                    if self.string(chunk, &mut at) {
                        self.token = Token::None;
                        // In a skipped part there is no place to go on from.
                        if !self.is_skipping() {
                            self.after_value();
                        }
                    }
                }
                Token::Key | Token::Candidate => {
                    let begin = at;
                    let ended = self.string(chunk, &mut at);
                    let piece = &chunk[begin..at - usize::from(ended)];
                    if self.token == Token::Key {
                        self.key(piece, ended);
                    } else {
                        self.candidate(piece, ended, out, replace)?;
                        copied = at;
                    }
                }
            }
        }
        out.extend_from_slice(&chunk[copied..]);
        self.offset += chunk.len() as u64;
        Ok(())
    }

    /// The document is complete.
    pub fn end(&mut self) -> Result<(), IndexError> {
        if self.token == Token::Scalar && self.stack.is_empty() {
            self.token = Token::None;
            self.next = Next::Nothing;
        }
        if self.next == Next::Nothing && self.token == Token::None {
            Ok(())
        } else {
            Err(self.error(0, "the document ends in the middle"))
        }
    }

    fn error(&self, at: usize, what: &str) -> IndexError {
        IndexError(format!(
            "upstream's document is no valid JSON: {what} (byte {})",
            self.offset + at as u64
        ))
    }

    /// Whether no chosen place is inside the innermost open container.
    fn is_skipping(&self) -> bool {
        self.stack.last().is_some_and(|frame| frame.alive == 0)
    }

    /// Runs through a part without chosen places, up to the string or the end that it meets.
    fn skip(&mut self, chunk: &[u8], at: &mut usize) -> Result<(), IndexError> {
        while let Some(length) = chunk[*at..].iter().position(|&byte| STRUCTURAL[usize::from(byte)]) {
            let byte = chunk[*at + length];
            *at += length;
            match byte {
                b'"' => {
                    *at += 1;
                    if !self.string(chunk, at) {
                        self.token = Token::Plain;
                        return Ok(());
                    }
                    continue;
                }
                b'{' | b'[' => self.open(byte == b'{', 0, *at)?,
                _ => {
                    self.close(byte == b'}', *at)?;
                    if !self.is_skipping() {
                        *at += 1;
                        return Ok(());
                    }
                }
            }
            *at += 1;
        }
        *at = chunk.len();
        Ok(())
    }

    /// Moves `at` behind the string's closing quote, if it is in this piece.
    fn string(&mut self, chunk: &[u8], at: &mut usize) -> bool {
        if self.escape && *at < chunk.len() {
            self.escape = false;
            *at += 1;
        }
        loop {
            *at = find_either::<b'"', b'\\'>(chunk, *at);
            match chunk.get(*at) {
                None => return false,
                Some(b'"') => {
                    *at += 1;
                    return true;
                }
                Some(_) if *at + 1 < chunk.len() => *at += 2,
                Some(_) => {
                    *at += 1;
                    self.escape = true;
                    return false;
                }
            }
        }
    }

    /// One byte between tokens.
    fn structure(&mut self, byte: u8, at: usize) -> Result<(), IndexError> {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            return Ok(());
        }
        match (self.next, byte) {
            (Next::Value | Next::ValueOrEnd, b'"') => {
                let depth = self.stack.len();
                let here = |(index, place): (usize, &Place)| self.alive >> index & 1 == 1 && place.len() <= depth;
                let candidate = self.places.iter().enumerate().any(here);
                self.token = if candidate { Token::Candidate } else { Token::Plain };
            }
            (Next::Value | Next::ValueOrEnd, b'{' | b'[') => self.open(byte == b'{', self.alive, at)?,
            (Next::Value | Next::ValueOrEnd, b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => self.token = Token::Scalar,
            (Next::Key | Next::KeyOrEnd, b'"') => self.token = Token::Key,
            (Next::KeyOrEnd | Next::CommaOrEnd, b'}') => self.close(true, at)?,
            (Next::ValueOrEnd | Next::CommaOrEnd, b']') => self.close(false, at)?,
            (Next::Colon, b':') => self.next = Next::Value,
            (Next::CommaOrEnd, b',') => match self.stack.last() {
                Some(Frame { object: true, .. }) => self.next = Next::Key,
                _ => self.before_item(Next::Value),
            },
            // A byte order mark: not allowed, but ignored by many (RFC 8259 section 8.1).
            (Next::Value, _) if self.stack.is_empty() && BYTE_ORDER_MARK.get(self.mark) == Some(&byte) => {
                self.mark += 1;
            }
            _ => return Err(self.error(at, &format!("unexpected {:?}", char::from(byte)))),
        }
        Ok(())
    }

    fn open(&mut self, object: bool, alive: u8, at: usize) -> Result<(), IndexError> {
        if self.stack.len() == MAX_DEPTH {
            return Err(self.error(at, &format!("nested more than {MAX_DEPTH} deep")));
        }
        self.stack.push(Frame { object, alive });
        if object {
            self.next = Next::KeyOrEnd;
        } else {
            self.before_item(Next::ValueOrEnd);
        }
        Ok(())
    }

    fn close(&mut self, object: bool, at: usize) -> Result<(), IndexError> {
        match self.stack.pop() {
            Some(frame) if frame.object == object => {
                self.after_value();
                Ok(())
            }
            _ => Err(self.error(at, "brackets do not match")),
        }
    }

    fn after_value(&mut self) {
        self.next = if self.stack.is_empty() {
            Next::Nothing
        } else {
            Next::CommaOrEnd
        };
    }

    fn before_item(&mut self, next: Next) {
        self.next = next;
        self.alive = self.step(|step| step.is_none_or(|step| matches!(step, Step::Item | Step::Any)));
    }

    /// The places that lead to a value inside the innermost container, by the step to it; none is left where the place
    /// was reached already.
    fn step(&self, matches: impl Fn(Option<Step>) -> bool) -> u8 {
        let Some(frame) = self.stack.last() else {
            return 0;
        };
        let depth = self.stack.len() - 1;
        let mut alive = 0;
        for (index, place) in self.places.iter().enumerate() {
            let leads = frame.alive >> index & 1 == 1 && matches(place.get(depth).copied());
            alive |= u8::from(leads) << index;
        }
        alive
    }

    /// A piece of a key, quotes excluded.
    fn key(&mut self, piece: &[u8], ended: bool) {
        if self.overlong || self.held.len() + piece.len() > MAX_KEY {
            self.overlong = true;
            self.held.clear();
        } else if !ended || !self.held.is_empty() {
            self.held.extend_from_slice(piece);
        }
        if !ended {
            return;
        }
        let raw = if self.held.is_empty() { piece } else { &self.held };
        let decoded;
        let name = if self.overlong {
            None
        } else if raw.contains(&b'\\') {
            decoded = decode(raw);
            decoded.as_deref()
        } else {
            std::str::from_utf8(raw).ok()
        };
        self.alive = self.step(|step| match step {
            Some(Step::Key(key)) => name.is_some_and(|name| same_name(name, key)),
            Some(Step::Any) => true,
            Some(Step::Item) | None => false,
        });
        self.held.clear();
        self.overlong = false;
        self.token = Token::None;
        self.next = Next::Colon;
    }

    /// A piece of a string that may be replaced, quotes excluded.
    fn candidate(
        &mut self,
        piece: &[u8],
        ended: bool,
        out: &mut Vec<u8>,
        replace: &mut dyn FnMut(&str) -> Option<String>,
    ) -> Result<(), IndexError> {
        if self.held.len() + piece.len() > MAX_CANDIDATE {
            return Err(self.error(0, &format!("a link longer than {MAX_CANDIDATE} bytes")));
        }
        self.held.extend_from_slice(piece);
        if !ended {
            return Ok(());
        }
        let text = decode(&self.held).ok_or_else(|| self.error(0, "a link with an escape that is none"))?;
        out.push(b'"');
        match replace(&text) {
            Some(replacement) => encode(&replacement, out),
            None => out.extend_from_slice(&self.held),
        }
        out.push(b'"');
        self.held.clear();
        self.token = Token::None;
        self.after_value();
        Ok(())
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What matters where nothing is compared.
const STRUCTURAL: [bool; 256] = {
    let mut table = [false; 256];
    table[b'"' as usize] = true;
    table[b'{' as usize] = true;
    table[b'}' as usize] = true;
    table[b'[' as usize] = true;
    table[b']' as usize] = true;
    table
};

fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// The first of two bytes from `at` on, or the end.
pub fn find_either<const ONE: u8, const OTHER: u8>(bytes: &[u8], at: usize) -> usize {
    let found = bytes.get(at..).and_then(|rest| memchr2(ONE, OTHER, rest));
    found.map_or(bytes.len().max(at), |found| at + found)
}

/// The text of a string as written between its quotes; `None` for an escape that is none. Half a surrogate pair becomes
/// U+FFFD, as in JavaScript when it is put into a URL.
pub fn decode(raw: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        bytes.extend_from_slice(&rest[..at]);
        let escape = *rest.get(at + 1)?;
        rest = &rest[at + 2..];
        let plain = match escape {
            b'"' | b'\\' | b'/' => escape,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = hex4(rest)?;
                rest = &rest[4..];
                if (0xd800..0xdc00).contains(&code)
                    && let Some(low) = rest.strip_prefix(b"\\u").and_then(hex4)
                    && (0xdc00..0xe000).contains(&low)
                {
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    rest = &rest[6..];
                }
                let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            _ => return None,
        };
        bytes.push(plain);
    }
    bytes.extend_from_slice(rest);
    Some(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

fn hex4(digits: &[u8]) -> Option<u32> {
    let digits = digits
        .get(..4)
        .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Appends a text as it stands between the quotes of a string.
pub fn encode(text: &str, out: &mut Vec<u8>) {
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
            '\0'..='\x1f' => out.extend_from_slice(format!("\\u{:04x}", character as u32).as_bytes()),
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Rewrites the links at the chosen places of a JSON document.
pub struct JsonIndex {
    scanner: Scanner,
    links: LinkMap,
}

impl JsonIndex {
    pub fn new(places: &'static [Place], links: LinkMap) -> Self {
        JsonIndex {
            scanner: Scanner::new(places),
            links,
        }
    }
}

impl IndexReader for JsonIndex {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError> {
        let links = &mut self.links;
        self.scanner.write(chunk, out, &mut |link| links.map(link))
    }

    fn end(&mut self, _out: &mut Vec<u8>) -> Result<(), IndexError> {
        self.scanner.end()
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        self.links.take_facts()
    }

    fn escaped(&self) -> u64 {
        self.links.escaped()
    }
}

#[cfg(test)]
mod tests;
