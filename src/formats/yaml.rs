//! A streaming YAML scanner that changes the scalars at a chosen place and copies everything else byte for byte.
//!
//! What a link is, the client decides, so that the document is read as Helm's library reads it (go-yaml 2, a descendant
//! of libyaml, YAML 1.1): the same tokens in the same places, anchors, aliases and merge keys, and JSON besides, which
//! Helm reads by another library. What cannot be followed is an error: it may lead anywhere.
//!
//! A library does not do it. Measured on an index of 20 MB: the events of `saphyr-parser` alone come at 62 to 77 MB/s (over a
//! bounded channel the least), this scanner rewrites at 175. Positions of events are in characters, and the end of a quoted
//! scalar lies behind the comment that follows it, so that links cannot be put in byte for byte; and YAML 1.2 is read there,
//! not what Helm reads.

mod scan;
mod text;
mod tree;

use super::IndexError;
use super::json::Place;
use scan::{Input, Stop, is_blank};
use text::{block_text, plain_text, quoted_text, write_scalar};
use tree::{Properties, Slot, Tree};

/// The longest scalar (icons are kept in `data:` URLs).
const MAX_SCALAR: usize = 4 << 20;
/// The longest link.
const MAX_LINK: usize = 64 * 1024;
/// The longest scalar that is remembered for its aliases.
const MAX_ANCHORED: usize = 4096;

/// What a scalar at the chosen place becomes; `None` leaves it.
pub(super) type Replace<'a> = dyn FnMut(&str) -> Option<String> + 'a;

/// Where the bytes go.
struct Output<'a> {
    out: &'a mut Vec<u8>,
    /// Up to here the input is written.
    written: usize,
    replace: &'a mut Replace<'a>,
}

impl Output<'_> {
    fn copy(&mut self, input: Input<'_>, to: usize) {
        self.out.extend_from_slice(&input.bytes[self.written..to]);
        self.written = to;
    }
}

/// How a scalar is written.
#[derive(Debug, Clone, Copy)]
enum Style {
    Plain,
    Quoted(u8),
    Block { column: usize, folded: bool },
}

/// A scalar that has come whole.
struct Scalar<'a> {
    raw: &'a [u8],
    style: Style,
}

impl Scalar<'_> {
    fn text(&self) -> String {
        match self.style {
            Style::Plain => plain_text(self.raw),
            Style::Quoted(_) => quoted_text(self.raw),
            Style::Block { column, folded } => block_text(self.raw, column, folded),
        }
    }
}

/// The properties of the node that comes, as far as they stand in its line.
#[derive(Debug, Default)]
struct Inner {
    properties: Properties,
    /// The column that they begin in, where a key may begin.
    key_column: Option<i64>,
}

/// The scanner. It knows nothing of links: what a scalar becomes says the function given to [`Scanner::write`].
pub(super) struct Scanner {
    tree: Tree,
    /// What was not read yet.
    buffer: Vec<u8>,
    /// How long that has to be for another look: each time twice as long, or a slow sender would cost too much.
    enough: usize,
    /// Where in it the next token is looked for.
    at: usize,
    /// Bytes read before.
    offset: u64,
    /// Of what comes next, from 0. It counts bytes, which before a block collection are characters.
    column: i64,
    /// Nothing but space has come in this line.
    fresh: bool,
    in_comment: bool,
    /// A key of one line may begin here.
    key_allowed: bool,
    inner: Inner,
}

impl Scanner {
    pub(super) fn new(place: Place) -> Self {
        Scanner {
            tree: Tree::new(place),
            buffer: Vec::new(),
            enough: 0,
            at: 0,
            offset: 0,
            column: 0,
            fresh: true,
            in_comment: false,
            key_allowed: true,
            inner: Inner::default(),
        }
    }

    /// Takes the next piece.
    pub(super) fn write(
        &mut self,
        chunk: &[u8],
        out: &mut Vec<u8>,
        replace: &mut Replace<'_>,
    ) -> Result<(), IndexError> {
        if chunk.contains(&0) {
            return Err(IndexError(
                "upstream's document has a NUL byte, which no YAML has".to_owned(),
            ));
        }
        self.buffer.extend_from_slice(chunk);
        if self.buffer.len() < self.enough.min(MAX_SCALAR) {
            return Ok(());
        }
        self.read(false, out, replace)?;
        if self.buffer.len() > MAX_SCALAR {
            return Err(IndexError(format!(
                "upstream's document has a value longer than {MAX_SCALAR} bytes"
            )));
        }
        Ok(())
    }

    /// The document is complete.
    pub(super) fn end(&mut self, out: &mut Vec<u8>, replace: &mut Replace<'_>) -> Result<(), IndexError> {
        self.read(true, out, replace)
    }

    fn read(&mut self, last: bool, out: &mut Vec<u8>, replace: &mut Replace<'_>) -> Result<(), IndexError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        out.reserve(buffer.len());
        let input = Input { bytes: &buffer, last };
        let mut output = Output {
            out,
            written: 0,
            replace: &mut |text| replace(text),
        };
        self.at = 0;
        let stop = loop {
            match self.token(input, &mut output) {
                Ok(true) => {}
                Ok(false) => break None,
                Err(Stop::More) => break None,
                Err(Stop::Wrong(what)) => break Some(what),
            }
        };
        output.copy(input, self.at);
        if let Some(what) = stop {
            let at = self.offset + self.at as u64;
            return Err(IndexError(format!(
                "upstream's document cannot be read as Helm does: {what} (byte {at})"
            )));
        }
        self.offset += self.at as u64;
        buffer.drain(..self.at);
        self.enough = buffer.len() * 2;
        self.buffer = buffer;
        Ok(())
    }

    /// Moves on behind `to`, in the same line.
    fn pass(&mut self, to: usize) {
        self.column += i64::try_from(to - self.at).unwrap_or(i64::MAX);
        self.at = to;
    }

    /// Skips what stands between tokens.
    fn skip(&mut self, input: Input<'_>) -> Result<(), Stop> {
        loop {
            if self.in_comment {
                // As far as it is there.
                let (end, whole) = input.rest_of_line(self.at);
                self.at = end;
                if !whole {
                    return Err(Stop::More);
                }
                self.in_comment = false;
            }
            match input.get(self.at)? {
                b' ' => self.pass(self.at + 1),
                // A tab does not indent.
                b'\t' if !self.fresh || self.tree.in_flow() => self.pass(self.at + 1),
                b'#' => self.in_comment = true,
                _ => {
                    let length = input.line_break(self.at)?;
                    if length == 0 {
                        return Ok(());
                    }
                    self.end_line()?;
                    self.at += length;
                }
            }
        }
    }

    fn end_line(&mut self) -> Result<(), Stop> {
        // What stands in the column of keys is one, or wrong.
        let inner = std::mem::take(&mut self.inner);
        self.no_key_wanted(inner.key_column)?;
        self.tree.properties.join(inner.properties)?;
        (self.column, self.fresh) = (0, true);
        if !self.tree.in_flow() {
            self.key_allowed = true;
        }
        Ok(())
    }

    /// In the column of the keys or items around it stands nothing else.
    fn no_key_wanted(&self, column: Option<i64>) -> Result<(), Stop> {
        if !self.tree.in_flow() && column == Some(self.tree.indent()) {
            return Err(Stop::Wrong("a value in the column of the keys"));
        }
        Ok(())
    }

    /// Reads one token; `false` at the end of the document.
    fn token(&mut self, input: Input<'_>, output: &mut Output<'_>) -> Result<bool, Stop> {
        self.skip(input)?;
        let at = self.at;
        let byte = input.get(at)?;
        let flow = self.tree.in_flow();
        if byte == 0 {
            return self.finish().map(|()| false);
        }
        if self.column == 0 {
            if input.is_marker(at)? {
                return self.marker(byte).map(|()| true);
            }
            if byte == b'%' {
                return self.directive(input).map(|()| true);
            }
        }
        // Deeper collections are over, if this is a token at all.
        let spaced = matches!(byte, b'-' | b'?' | b':') && input.is_space(at + 1)?;
        self.tree.leave(self.column)?;
        let column = self.column;
        self.fresh = false;
        match byte {
            b'-' if spaced => {
                if flow || !self.key_allowed || !self.inner.properties.is_empty() {
                    return Err(Stop::Wrong("an item where none can stand"));
                }
                self.tree.dash(column)?;
                self.pass(at + 1);
            }
            b'?' if spaced || flow => {
                if !flow && (!self.key_allowed || !self.inner.properties.is_empty()) {
                    return Err(Stop::Wrong("a key where none can stand"));
                }
                self.join_in_flow()?;
                self.tree.question(column)?;
                self.key_allowed = !flow;
                self.pass(at + 1);
            }
            b':' if spaced || flow => {
                if !self.inner.properties.is_empty() || (flow && !self.tree.properties.is_empty()) {
                    return Err(Stop::Wrong("a key that is nothing but an anchor or a tag"));
                }
                if !flow && !self.key_allowed {
                    return Err(Stop::Wrong("a value where none can stand"));
                }
                self.tree.colon(column)?;
                self.key_allowed = !flow;
                self.pass(at + 1);
            }
            b'&' | b'!' => self.property(input, byte)?,
            b'[' | b'{' => {
                self.no_key_wanted(self.key_column())?;
                self.join()?;
                self.tree.open_flow(byte)?;
                self.key_allowed = true;
                self.pass(at + 1);
            }
            b']' | b'}' => {
                self.join_in_flow()?;
                self.tree.close_flow(byte)?;
                self.key_allowed = false;
                self.pass(at + 1);
            }
            b',' => {
                self.join_in_flow()?;
                self.tree.comma()?;
                self.key_allowed = true;
                self.pass(at + 1);
            }
            b'*' => self.alias(input, output)?,
            b'"' | b'\'' => {
                let (end, lines) = input.quoted(at)?;
                self.scalar(input, output, end, lines, Style::Quoted(byte))?;
            }
            b'|' | b'>' if !flow => {
                let (end, column) = input.block(at, self.tree.indent())?;
                // Only what stands before it could be a key.
                self.no_key_wanted(self.inner.key_column)?;
                let folded = byte == b'>';
                self.node(input, output, end, Style::Block { column, folded })?;
                (self.column, self.fresh, self.key_allowed) = (0, true, true);
            }
            b'|' | b'>' | b'%' | b'@' | b'`' | b'\t' => return Err(Stop::Wrong("a character that begins nothing")),
            0xef if input.get(at + 1)? == 0xbb && input.get(at + 2)? == 0xbf => {
                return Err(Stop::Wrong("a byte order mark in its middle"));
            }
            _ => {
                let (end, lines) = input.plain(at, flow, self.tree.indent() + 1)?;
                self.scalar(input, output, end, lines, Style::Plain)?;
            }
        }
        Ok(true)
    }

    /// The end of everything.
    fn finish(&mut self) -> Result<(), Stop> {
        if self.tree.in_flow() {
            return Err(Stop::Wrong("the document ends in the middle of a value"));
        }
        self.end_line()
    }

    /// `---` or `...`.
    fn marker(&mut self, byte: u8) -> Result<(), Stop> {
        if self.tree.in_flow() {
            return Err(Stop::Wrong("a document that ends in the middle of a value"));
        }
        self.tree.end_document()?;
        self.pass(self.at + 3);
        self.fresh = false;
        self.key_allowed = byte == b'.';
        Ok(())
    }

    /// `%YAML`; others give tags another meaning.
    fn directive(&mut self, input: Input<'_>) -> Result<(), Stop> {
        let end = input.line_end(self.at)?;
        let name = input.bytes[self.at..end].split(|byte| is_blank(*byte)).next();
        if !self.tree.is_new() || name != Some(b"%YAML".as_slice()) {
            return Err(Stop::Wrong("a directive other than %YAML"));
        }
        self.pass(end);
        Ok(())
    }

    /// An anchor or a tag.
    fn property(&mut self, input: Input<'_>, byte: u8) -> Result<(), Stop> {
        let start = self.at + 1;
        let mut found = Properties::default();
        let end = if byte == b'&' {
            let end = input.name(start)?;
            found.anchor = Some(String::from_utf8_lossy(&input.bytes[start..end]).into_owned());
            end
        } else {
            found.tagged = true;
            input.tag(start)?
        };
        if self.inner.properties.is_empty() {
            self.inner.key_column = self.key_allowed.then_some(self.column);
        }
        self.inner.properties.join(found)?;
        self.key_allowed = false;
        self.pass(end);
        Ok(())
    }

    /// The column in which a key that stands here begins, properties included.
    fn key_column(&self) -> Option<i64> {
        if self.inner.properties.is_empty() {
            self.key_allowed.then_some(self.column)
        } else {
            self.inner.key_column
        }
    }

    /// The properties of this line are those of the node that comes.
    fn join(&mut self) -> Result<(), Stop> {
        let inner = std::mem::take(&mut self.inner);
        self.tree.properties.join(inner.properties)
    }

    /// Gives what stood on the lines before to the node that comes, in flow style only: lines make no difference there.
    fn join_in_flow(&mut self) -> Result<(), Stop> {
        if self.tree.in_flow() { self.join() } else { Ok(()) }
    }

    /// The place of the `:` behind `end` that makes a key of what begins here, and the column of the key.
    fn key_here(&self, input: Input<'_>, end: usize, lines: bool) -> Result<Option<(usize, i64)>, Stop> {
        let flow = self.tree.in_flow();
        let Some(column) = self
            .key_column()
            .filter(|_| !lines && (!flow || self.tree.takes_pair()))
        else {
            return Ok(None);
        };
        Ok(input.colon(end, flow)?.map(|colon| (colon, column)))
    }

    /// Reads the key that begins here, up to and with its `:`.
    fn key(&mut self, text: &str, plain: bool, (colon, column): (usize, i64)) -> Result<(), Stop> {
        let inner = std::mem::take(&mut self.inner);
        self.tree.begin_key(column)?;
        let mut properties = inner.properties;
        if self.tree.in_flow() {
            let mut outer = std::mem::take(&mut self.tree.properties);
            outer.join(properties)?;
            properties = outer;
        }
        self.tree.key(text, plain, properties)?;
        self.tree.begin_value();
        self.key_allowed = false;
        self.pass(colon + 1);
        Ok(())
    }

    /// A scalar that may be a key.
    fn scalar(
        &mut self,
        input: Input<'_>,
        output: &mut Output<'_>,
        end: usize,
        lines: bool,
        style: Style,
    ) -> Result<(), Stop> {
        if let Some(key) = self.key_here(input, end, lines)? {
            let raw = &input.bytes[self.at..end];
            let text = Scalar { raw, style }.text();
            return self.key(&text, matches!(style, Style::Plain), key);
        }
        self.no_key_wanted(self.key_column())?;
        self.node(input, output, end, style)?;
        self.key_allowed = false;
        Ok(())
    }

    /// A scalar that is no key of one line: changed if it is at the chosen place.
    fn node(&mut self, input: Input<'_>, output: &mut Output<'_>, end: usize, style: Style) -> Result<(), Stop> {
        self.join()?;
        let raw = &input.bytes[self.at..end];
        let scalar = Scalar { raw, style };
        let properties = std::mem::take(&mut self.tree.properties);
        match self.tree.slot()? {
            Slot::Key => {
                let text = scalar.text();
                self.tree.key(&text, matches!(style, Style::Plain), properties)?;
            }
            // No link at all.
            Slot::Node(spot) if !properties.tagged && matches!(style, Style::Plain) && is_null(raw) => {
                self.tree.scalar(spot, properties, None);
            }
            Slot::Node(spot) if self.tree.is_chosen(spot) => {
                if raw.len() > MAX_LINK {
                    return Err(Stop::Wrong("a link longer than 65536 bytes"));
                }
                if let Some(link) = (output.replace)(&scalar.text()) {
                    output.copy(input, self.at);
                    output.written = end;
                    let quote = match style {
                        Style::Plain => None,
                        Style::Quoted(quote) => Some(quote),
                        Style::Block { .. } => Some(b'"'),
                    };
                    write_scalar(&link, quote, output.out);
                    if matches!(style, Style::Block { .. }) {
                        output.out.extend_from_slice(first_line_break(raw));
                    }
                }
                self.tree.scalar(spot, properties, None);
            }
            Slot::Node(spot) => {
                // What a tag makes of the text is not looked into, so an alias of it is not followed.
                let remembered = properties.anchor.is_some() && !properties.tagged && raw.len() <= MAX_ANCHORED;
                self.tree.scalar(spot, properties, remembered.then(|| scalar.text()));
            }
        }
        self.pass(end);
        Ok(())
    }

    /// An alias, as a key or as a value.
    fn alias(&mut self, input: Input<'_>, output: &mut Output<'_>) -> Result<(), Stop> {
        let end = input.name(self.at + 1)?;
        let name = String::from_utf8_lossy(&input.bytes[self.at + 1..end]).into_owned();
        let key = self.key_here(input, end, false)?;
        self.join_in_flow()?;
        if !self.inner.properties.is_empty() || !self.tree.properties.is_empty() && key.is_none() {
            return Err(Stop::Wrong("an alias with an anchor or a tag"));
        }
        if let Some(key) = key {
            let text = self.tree.alias_text(&name)?.to_owned();
            return self.key(&text, false, key);
        }
        self.no_key_wanted(self.key_column())?;
        match self.tree.slot()? {
            Slot::Key => {
                let text = self.tree.alias_text(&name)?.to_owned();
                self.tree.key(&text, false, Properties::default())?;
            }
            Slot::Node(spot) => {
                if let Some(text) = self.tree.alias(spot, &name)?
                    && let Some(link) = (output.replace)(text)
                {
                    output.copy(input, self.at);
                    output.written = end;
                    write_scalar(&link, Some(b'"'), output.out);
                }
            }
        }
        self.key_allowed = false;
        self.pass(end);
        Ok(())
    }
}

fn is_null(plain: &[u8]) -> bool {
    matches!(plain, b"~" | b"null" | b"Null" | b"NULL")
}

/// The line break that ends the header of a block scalar.
fn first_line_break(raw: &[u8]) -> &[u8] {
    let input = Input { bytes: raw, last: true };
    (0..raw.len())
        .find_map(|at| {
            let length = input.line_break(at).unwrap_or(0);
            (length > 0).then(|| &raw[at..at + length])
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
