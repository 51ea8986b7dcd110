//! A streaming YAML scanner that changes the scalars at a chosen place and copies everything else byte for byte. It
//! parses nothing into memory: of YAML 1.2, it follows as much as it takes to know which scalar stands where. That is
//! block collections by their columns, flow collections, the five scalar styles, over several lines too, comments,
//! anchors, aliases and merge keys, several documents. Lines end with LF, CR LF or CR; tabs never indent.
//!
//! What is no YAML passes through: the client's own parser has the last word on it.

mod flow;
mod text;

use std::collections::HashMap;

use super::RewriteError;
use super::json::{Place, Step, find_either};
use text::{
    find_key, flow_text, is_marker, is_white, key_text, literal_text, plain_end, properties, quote_end, skip_white,
    word_end, write_scalar,
};

/// The longest line that is looked at as one (icons are kept in `data:` URLs).
const MAX_LINE: usize = 4 << 20;
/// The longest scalar that is held back or remembered.
const MAX_HELD: usize = 64 * 1024;
/// Collections inside each other.
const MAX_DEPTH: usize = 256;
/// Anchors that are remembered.
const MAX_ANCHORS: usize = 4096;

/// How many steps of the place the way to a node follows.
type Level = usize;
/// The way leads elsewhere.
const DEAD: Level = Level::MAX;

/// What a scalar at the chosen place becomes; `None` leaves it.
pub type Replace<'a> = dyn FnMut(&str) -> Option<String> + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BlockMap,
    BlockSequence,
    FlowMap,
    FlowSequence,
}

/// An open collection.
#[derive(Debug)]
struct Frame {
    kind: Kind,
    /// The column of its keys or dashes; none that can be left in flow style.
    column: usize,
    level: Level,
    /// The level of the value of the key read last (explicit keys and flow style).
    next: Level,
    /// In flow style: the value comes, no key. In block style: the key was an explicit one.
    value: bool,
    /// In flow style: a `:` needs no space now, after a quoted key or a collection.
    adjacent: bool,
}

impl Frame {
    fn is_flow(&self) -> bool {
        matches!(self.kind, Kind::FlowMap | Kind::FlowSequence)
    }
}

/// What becomes of the scalar that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    /// Copied unread.
    Skip,
    /// The key of a flow mapping.
    Key,
    /// At the chosen place.
    Chosen,
    /// Remembered, for an alias may put it at the chosen place.
    Anchored(String),
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Block style, between scalars.
    Block,
    /// A plain scalar in block style; lines deeper than `parent` continue it.
    Plain {
        parent: i64,
    },
    Quoted(u8),
    /// A block scalar; its column is known from its header or its first line.
    Literal {
        parent: i64,
        column: Option<usize>,
        folded: bool,
    },
    /// Flow style, between scalars.
    Flow,
    FlowPlain,
}

struct Anchor {
    level: Level,
    /// Of a scalar that is not at the chosen place.
    text: Option<String>,
}

/// The line that is read, and where it goes.
struct Line<'a> {
    text: &'a [u8],
    /// Up to here it is copied or held.
    copied: usize,
    out: &'a mut Vec<u8>,
    replace: &'a mut Replace<'a>,
}

impl Line<'_> {
    /// Whether nothing but space and comment is left at `at`, which is at the start of the line or behind a space.
    fn is_over(&self, at: usize) -> bool {
        self.text.get(at).is_none_or(|byte| *byte == b'#')
    }

    fn is_spaced(&self, at: usize) -> bool {
        self.text.get(at + 1).is_none_or(|byte| is_white(*byte))
    }
}

/// The scanner. It knows nothing of links: what a scalar becomes says the function given to [`Scanner::write`].
pub struct Scanner {
    place: Place,
    /// The beginning of a line of which the end has not come yet.
    line: Vec<u8>,
    stack: Vec<Frame>,
    state: State,
    /// The level of the node that the innermost block collection expects, if it does.
    pending: Option<Level>,
    pending_anchor: Option<String>,
    role: Role,
    /// The scalar so far, as written, where it is not copied at once, and how much of it is no trailing space.
    held: Vec<u8>,
    holding: bool,
    text_end: usize,
    anchors: HashMap<String, Anchor>,
    unresolved: u64,
}

impl Scanner {
    pub fn new(place: Place) -> Self {
        Scanner {
            place,
            line: Vec::new(),
            stack: Vec::new(),
            state: State::Block,
            pending: Some(0),
            pending_anchor: None,
            role: Role::Skip,
            held: Vec::new(),
            holding: false,
            text_end: 0,
            anchors: HashMap::new(),
            unresolved: 0,
        }
    }

    /// Aliases on the way to the chosen place that stand for what was not followed.
    pub fn unresolved(&self) -> u64 {
        self.unresolved
    }

    /// Takes the next piece.
    pub fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>, replace: &mut Replace<'_>) -> Result<(), RewriteError> {
        out.reserve(chunk.len());
        let mut at = 0;
        while at < chunk.len() {
            if self.line.last() == Some(&b'\r') {
                let mut line = std::mem::take(&mut self.line);
                line.pop();
                let both = chunk[at] == b'\n';
                at += usize::from(both);
                self.read_line(&line, if both { b"\r\n" } else { b"\r" }, out, replace)?;
                continue;
            }
            let end = find_either::<b'\n', b'\r'>(chunk, at);
            // A carriage return at the very end may be half of a line break.
            if end >= chunk.len() || (chunk[end] == b'\r' && end + 1 == chunk.len()) {
                self.line.extend_from_slice(&chunk[at..]);
                break;
            }
            let length = if chunk[end..].starts_with(b"\r\n") { 2 } else { 1 };
            let (text, eol) = (&chunk[at..end], &chunk[end..end + length]);
            if self.line.is_empty() {
                self.read_line(text, eol, out, replace)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(text);
                self.read_line(&line, eol, out, replace)?;
                line.clear();
                self.line = line;
            }
            at = end + length;
        }
        if self.line.len() > MAX_LINE {
            return Err(RewriteError(format!(
                "upstream's document has a line longer than {MAX_LINE} bytes"
            )));
        }
        Ok(())
    }

    /// The document is complete.
    pub fn end(&mut self, out: &mut Vec<u8>, replace: &mut Replace<'_>) -> Result<(), RewriteError> {
        let line = std::mem::take(&mut self.line);
        let text = line.strip_suffix(b"\r").unwrap_or(&line);
        if !line.is_empty() {
            self.read_line(text, &line[text.len()..], out, replace)?;
        }
        match self.state {
            State::Quoted(_) | State::Flow | State::FlowPlain => Err(RewriteError(
                "upstream's document ends in the middle of a value".to_owned(),
            )),
            _ => {
                self.finish(out, replace);
                Ok(())
            }
        }
    }

    /// One line and what ends it.
    fn read_line(
        &mut self,
        text: &[u8],
        eol: &[u8],
        out: &mut Vec<u8>,
        replace: &mut Replace<'_>,
    ) -> Result<(), RewriteError> {
        let indent = text.iter().take_while(|&&byte| byte == b' ').count();
        let blank = skip_white(text, indent) == text.len();
        let mut line = Line {
            text,
            copied: 0,
            out,
            replace: &mut |text| replace(text),
        };
        match &mut self.state {
            State::Plain { .. } | State::Literal { .. } if blank => {}
            State::Plain { parent } => {
                let deeper = i64::try_from(indent).is_ok_and(|indent| indent > *parent);
                if deeper && text[indent] != b'#' && !is_marker(text) {
                    self.text_end = self.held.len() + plain_end(text, indent);
                } else {
                    self.finish(line.out, line.replace);
                }
            }
            State::Literal { parent, column, .. } => {
                if column.is_none() && i64::try_from(indent).is_ok_and(|indent| indent > *parent) {
                    *column = Some(indent);
                }
                if column.is_none_or(|column| indent < column) {
                    self.finish(line.out, line.replace);
                }
            }
            _ => {}
        }
        let mut at = 0;
        loop {
            match self.state {
                State::Block if at == 0 && !blank => at = self.block(&mut line, indent)?,
                State::Block | State::Plain { .. } | State::Literal { .. } => break,
                State::Quoted(quote) => {
                    let Some(end) = quote_end(text, at, quote) else {
                        break;
                    };
                    at = end;
                    self.keep(&mut line, at);
                    self.text_end = self.held.len();
                    self.finish(line.out, line.replace);
                }
                State::Flow => at = self.flow(&mut line, at)?,
                State::FlowPlain => {
                    let (end, ended) = self.flow_plain(&line, at);
                    if !ended {
                        break;
                    }
                    at = end;
                    self.keep(&mut line, at);
                    self.finish(line.out, line.replace);
                }
            }
            if at >= text.len() {
                break;
            }
        }
        self.keep(&mut line, text.len());
        if !self.holding {
            out.extend_from_slice(eol);
            return Ok(());
        }
        self.held.extend_from_slice(eol);
        if self.held.len() > MAX_HELD {
            if self.role == Role::Chosen {
                return Err(RewriteError(format!(
                    "upstream's document has a link longer than {MAX_HELD} bytes"
                )));
            }
            out.append(&mut self.held);
            self.holding = false;
            self.role = Role::Skip;
        }
        Ok(())
    }

    /// Moves the line up to `to` on: into what is held, or out.
    fn keep(&mut self, line: &mut Line<'_>, to: usize) {
        let target = if self.holding { &mut self.held } else { &mut *line.out };
        target.extend_from_slice(&line.text[line.copied..to]);
        line.copied = to;
    }

    /// Begins a scalar at `at`.
    fn begin(&mut self, line: &mut Line<'_>, at: usize, role: Role) {
        self.keep(line, at);
        self.holding = role != Role::Skip;
        self.text_end = 0;
        self.role = role;
    }

    /// Ends the scalar: what is held goes out, changed if it is at the chosen place.
    fn finish(&mut self, out: &mut Vec<u8>, replace: &mut Replace<'_>) {
        let state = self.state;
        self.state = State::Block;
        if let Some(frame) = self.stack.last_mut().filter(|frame| frame.is_flow()) {
            frame.adjacent = matches!(state, State::Quoted(_));
            self.state = State::Flow;
        }
        if !self.holding {
            return;
        }
        self.holding = false;
        let held = std::mem::take(&mut self.held);
        let (raw, rest) = held.split_at(self.text_end.min(held.len()));
        let text = match state {
            State::Literal { column, folded, .. } => literal_text(&held, column.unwrap_or(usize::MAX), folded),
            State::Quoted(_) => key_text(raw),
            _ => flow_text(raw, None),
        };
        let replacement = match std::mem::replace(&mut self.role, Role::Skip) {
            Role::Chosen => replace(&text),
            Role::Key => {
                let next = self
                    .stack
                    .last()
                    .map_or(DEAD, |frame| self.child_key(frame.level, &text));
                if let Some(frame) = self.stack.last_mut() {
                    frame.next = next;
                }
                None
            }
            Role::Anchored(name) => {
                if let Some(anchor) = self.anchors.get_mut(&name) {
                    anchor.text = Some(text);
                }
                None
            }
            Role::Skip => None,
        };
        match (replacement, state) {
            (None, _) => out.extend_from_slice(&held),
            (Some(text), State::Literal { .. }) => {
                write_scalar(&text, Some(b'"'), out);
                // Its final line breaks were its own; one ends the line.
                let eol = held
                    .iter()
                    .position(|byte| matches!(byte, b'\n' | b'\r'))
                    .map_or(&[][..], |at| &held[at..]);
                let length = if eol.starts_with(b"\r\n") { 2 } else { 1 };
                out.extend_from_slice(&eol[..eol.len().min(length)]);
            }
            (Some(text), state) => {
                write_scalar(
                    &text,
                    if let State::Quoted(quote) = state {
                        Some(quote)
                    } else {
                        None
                    },
                    out,
                );
                out.extend_from_slice(rest);
            }
        }
    }

    fn step(&self, level: Level) -> Option<Step> {
        self.place.get(level).copied()
    }

    /// Whether the keys of a mapping at this level matter.
    fn has_keys(&self, level: Level) -> bool {
        matches!(self.step(level), Some(Step::Key(_) | Step::Any))
    }

    /// The level of a mapping's value. A merge key (`<<`) stands for the mapping itself.
    fn child_key(&self, level: Level, key: &str) -> Level {
        match self.step(level) {
            Some(Step::Key(_) | Step::Any) if key == "<<" => level,
            Some(Step::Key(wanted)) if wanted == key => level + 1,
            Some(Step::Any) => level + 1,
            _ => DEAD,
        }
    }

    /// The level of a sequence's item.
    fn child_item(&self, level: Level) -> Level {
        if self.step(level) == Some(Step::Item) {
            level + 1
        } else {
            DEAD
        }
    }

    /// Leaves the block collections deeper than a column.
    fn leave(&mut self, column: usize) {
        while self.stack.last().is_some_and(|frame| frame.column > column) {
            self.stack.pop();
            self.expect(None);
        }
    }

    /// The node that comes next.
    fn expect(&mut self, level: Option<Level>) {
        self.pending = level;
        self.pending_anchor = None;
    }

    fn open(&mut self, kind: Kind, column: usize, level: Level) -> Result<(), RewriteError> {
        if self.stack.len() == MAX_DEPTH {
            return Err(RewriteError(format!(
                "upstream's document is nested more than {MAX_DEPTH} deep"
            )));
        }
        if let Some(name) = self.pending_anchor.take() {
            self.anchor(name, level);
        }
        self.stack.push(Frame {
            kind,
            column,
            level,
            next: DEAD,
            value: false,
            adjacent: false,
        });
        Ok(())
    }

    /// Remembers an anchor, if there is room. The newest of a name counts.
    fn anchor(&mut self, name: String, level: Level) -> bool {
        let room = self.anchors.len() < MAX_ANCHORS || self.anchors.contains_key(&name);
        if room {
            self.anchors.insert(name, Anchor { level, text: None });
        }
        room
    }

    /// Makes the innermost collection one of this kind in this column. Its level.
    fn collection(&mut self, kind: Kind, column: usize) -> Result<Level, RewriteError> {
        self.leave(column);
        let here = |frame: &&Frame, kind: Kind| frame.kind == kind && frame.column == column;
        // A sequence may stand in the column of the key that it is the value of.
        if kind == Kind::BlockMap && self.stack.last().is_some_and(|frame| here(&frame, Kind::BlockSequence)) {
            self.stack.pop();
            self.expect(None);
        }
        if let Some(frame) = self.stack.last().filter(|frame| here(frame, kind)) {
            return Ok(frame.level);
        }
        let level = self.pending.take().unwrap_or(DEAD);
        self.open(kind, column, level)?;
        Ok(level)
    }

    /// The structure of a line in block style, up to the scalar or flow collection in it. Where that begins, or the end.
    fn block(&mut self, line: &mut Line<'_>, indent: usize) -> Result<usize, RewriteError> {
        let text = line.text;
        if line.is_over(skip_white(text, indent)) {
            return Ok(text.len());
        }
        if is_marker(text) {
            self.stack.clear();
            self.anchors.clear();
            self.expect(Some(0));
            let at = skip_white(text, 3);
            let over = text[0] == b'.' || line.is_over(at);
            return if over { Ok(text.len()) } else { self.node(line, at) };
        }
        if text[0] == b'%' && self.stack.is_empty() && self.pending == Some(0) {
            return Ok(text.len());
        }
        let mut at = indent;
        loop {
            match text[at] {
                b'-' if line.is_spaced(at) => {
                    let level = self.collection(Kind::BlockSequence, at)?;
                    self.expect(Some(self.child_item(level)));
                }
                b'?' if line.is_spaced(at) => {
                    let level = self.collection(Kind::BlockMap, at)?;
                    let key = explicit_key(text, skip_white(text, at + 1));
                    // A key that is no short scalar still has a value that `Any` leads to.
                    let next = self.child_key(level, key.as_deref().unwrap_or_default());
                    if let Some(frame) = self.stack.last_mut() {
                        (frame.next, frame.value) = (next, true);
                    }
                    self.expect(Some(DEAD));
                }
                b':' if line.is_spaced(at) && self.is_explicit(at) => {
                    self.leave(at);
                    self.expect(self.stack.last().map(|frame| frame.next));
                }
                _ => break,
            }
            at = skip_white(text, at + 1);
            if line.is_over(at) {
                return Ok(text.len());
            }
        }
        let (after, _) = properties(text, at);
        let Some((key_end, colon)) = (after < text.len()).then(|| find_key(text, after)).flatten() else {
            return self.node(line, at);
        };
        // Properties before a key are its own, those on an earlier line the mapping's.
        let level = self.collection(Kind::BlockMap, at)?;
        if let Some(frame) = self.stack.last_mut() {
            frame.value = false;
        }
        let next = if self.has_keys(level) {
            self.child_key(level, &key_text(&text[after..key_end]))
        } else {
            DEAD
        };
        self.expect(Some(next));
        at = skip_white(text, colon + 1);
        if line.is_over(at) {
            Ok(text.len())
        } else {
            self.node(line, at)
        }
    }

    /// Whether the mapping in this column waits for the value of an explicit key.
    fn is_explicit(&self, column: usize) -> bool {
        let frame = self.stack.iter().rev().find(|frame| frame.column <= column);
        frame.is_some_and(|frame| frame.kind == Kind::BlockMap && frame.column == column && frame.value)
    }

    /// The properties of a node in block style and, if it is on the same line, the node: a scalar, an alias or a flow
    /// collection.
    fn node(&mut self, line: &mut Line<'_>, at: usize) -> Result<usize, RewriteError> {
        let (at, anchor) = properties(line.text, at);
        if anchor.is_some() {
            self.pending_anchor = anchor;
        }
        let Some(&first) = line.text.get(at) else {
            return Ok(at);
        };
        let level = self.pending.take().unwrap_or(DEAD);
        match first {
            b'*' => {
                self.pending_anchor = None;
                return Ok(self.alias(line, at, level));
            }
            b'[' | b'{' => {
                self.open_flow(first, level)?;
                self.state = State::Flow;
                return Ok(at + 1);
            }
            _ => {}
        }
        let parent = self
            .stack
            .last()
            .map_or(-1, |frame| i64::try_from(frame.column).unwrap_or(i64::MAX));
        let role = self.role(level);
        self.begin(line, at, role);
        match first {
            b'"' | b'\'' => {
                self.state = State::Quoted(first);
                Ok(at + 1)
            }
            b'|' | b'>' => {
                let digit = line.text[at + 1..]
                    .iter()
                    .take(2)
                    .find(|byte| matches!(byte, b'1'..=b'9'));
                let column = digit.map(|digit| usize::try_from(parent).unwrap_or(0) + usize::from(digit - b'0'));
                self.state = State::Literal {
                    parent,
                    column,
                    folded: first == b'>',
                };
                Ok(line.text.len())
            }
            _ => {
                self.state = State::Plain { parent };
                self.text_end = plain_end(line.text, at) - at;
                Ok(line.text.len())
            }
        }
    }

    /// What becomes of the scalar that begins at a node of this level.
    fn role(&mut self, level: Level) -> Role {
        let anchored = self
            .pending_anchor
            .take()
            .filter(|name| self.anchor(name.clone(), level));
        match anchored {
            _ if level == self.place.len() => Role::Chosen,
            Some(name) => Role::Anchored(name),
            None => Role::Skip,
        }
    }

    /// An alias: it stays if what it stands for is rewritten where it is written. Where the alias ends.
    fn alias(&mut self, line: &mut Line<'_>, at: usize, level: Level) -> usize {
        let end = word_end(line.text, at);
        if level == DEAD {
            return end;
        }
        let name = String::from_utf8_lossy(&line.text[at + 1..end]);
        match self.anchors.get(name.as_ref()) {
            Some(anchor) if anchor.level == level => {}
            Some(Anchor { text: Some(text), .. }) if level == self.place.len() => {
                if let Some(replacement) = (line.replace)(text) {
                    line.out.extend_from_slice(&line.text[line.copied..at]);
                    line.copied = end;
                    write_scalar(&replacement, Some(b'"'), line.out);
                }
            }
            _ => self.unresolved += 1,
        }
        end
    }
}

/// The text of a key after `? `, if it is a scalar of one line.
fn explicit_key(text: &[u8], at: usize) -> Option<String> {
    let (at, _) = properties(text, at);
    match text.get(at)? {
        quote @ (b'"' | b'\'') => quote_end(text, at + 1, *quote).map(|end| key_text(&text[at..end])),
        b'|' | b'>' | b'[' | b'{' | b'*' => None,
        _ => Some(key_text(&text[at..plain_end(text, at)])),
    }
}

#[cfg(test)]
mod tests;
