//! Helm chart repositories (<https://helm.sh/docs/topics/chart_repository/>): `index.yaml` names the charts by URLs that
//! Helm resolves against the repository's own. The index is YAML of 20 to 40 MB, so that it is rewritten line by line and
//! byte for byte, nothing of it parsed into memory: of YAML 1.2, as much is followed as it takes to know which scalar is
//! an item of `entries.*[].urls`.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;

use super::json::{self, JsonRewriter, Place, Step};
use super::links::{self, LinkMap, Style};
use super::{
    ArtifactPath, Class, Format, Handling, RewriteError, Rewriter, View, ViewContext, content_type_by_extension,
};
use crate::config::Remote;

/// The format of `package: helm`.
pub struct Helm;

/// Stands before a chart whose URL has a query: Helm drops the query of a relative URL (`ResolveReferenceURL` in its
/// `pkg/repo`), so that it goes into the path, where the file keeps its name.
const QUERY_PREFIX: &str = "-/query/";

/// Where an index in JSON, which Helm reads too, names charts.
const CHARTS: &[Place] = &[&[
    Step::Key("entries"),
    Step::Any,
    Step::Item,
    Step::Key("urls"),
    Step::Item,
]];

impl Format for Helm {
    fn handle(&self, _remote: &Remote, _method: &Method, path: ArtifactPath) -> Handling {
        let with_query = path.encoded.strip_prefix(QUERY_PREFIX).and_then(|rest| {
            let (query, encoded) = rest.split_once('/')?;
            let query = String::from_utf8(URL_SAFE_NO_PAD.decode(query).ok()?).ok()?;
            let clean = query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            let decoded = links::decode_once(encoded);
            clean.then(|| ArtifactPath {
                decoded,
                encoded: encoded.to_owned(),
                query: Some(query),
            })
        });
        Handling::Artifact(with_query.unwrap_or(path))
    }

    fn builtin_class(&self, path: &str) -> Option<Class> {
        path.ends_with("index.yaml").then_some(Class::Mutable)
    }

    /// A provenance file goes as its chart.
    fn governing_path<'a>(&self, path: &'a str) -> &'a str {
        path.strip_suffix(".prov").unwrap_or(path)
    }

    fn has_view(&self, _remote: &Remote, path: &str) -> Option<View> {
        (path == "index.yaml" || path.ends_with("/index.yaml")).then_some(View { absolute: false })
    }

    fn rewriter(&self, context: &ViewContext<'_>) -> Box<dyn Rewriter> {
        let bases = context.remote.base_url.iter();
        let bases = bases
            .map(|base| (base, (|path| !path.starts_with(QUERY_PREFIX)) as fn(&str) -> bool))
            .collect();
        let links = Charts(LinkMap::with_bases(context, Style::Relative, bases));
        Box::new(Index {
            head: Vec::new(),
            links: Some(links),
            body: None,
        })
    }

    fn index_naming(&self, _remote: &Remote, _path: &str) -> Option<String> {
        Some("index.yaml".to_owned())
    }

    fn content_type(&self, path: &str) -> &'static str {
        if path.ends_with(".prov") {
            "text/plain; charset=utf-8"
        } else {
            content_type_by_extension(path)
        }
    }
}

/// Turns the URLs of an index into ours.
struct Charts(LinkMap);

impl Charts {
    fn map(&mut self, link: &str) -> Option<String> {
        let mapped = self.0.map(link)?;
        let (before, fragment) = mapped.split_at(mapped.find('#').unwrap_or(mapped.len()));
        let Some((path, query)) = before.split_once('?') else {
            return Some(mapped);
        };
        let mut at = 0;
        while let Some(up) = ["./", "../"].into_iter().find(|up| path[at..].starts_with(up)) {
            at += up.len();
        }
        let (up, path) = path.split_at(at);
        Some(format!(
            "{up}{QUERY_PREFIX}{}/{path}{fragment}",
            URL_SAFE_NO_PAD.encode(query)
        ))
    }
}

/// An index before and after its first byte is known.
struct Index {
    head: Vec<u8>,
    /// Until they are moved into the body.
    links: Option<Charts>,
    body: Option<Body>,
}

enum Body {
    Json(json::Scanner, Charts),
    Yaml(Box<Yaml>),
}

impl Index {
    /// Decides by the first byte that says something, a byte order mark and whitespace aside.
    fn body(&mut self, last: bool, out: &mut Vec<u8>) -> Result<Option<&mut Body>, RewriteError> {
        if self.body.is_none() {
            if matches!(self.head.as_slice(), [0xfe | 0xff, ..]) {
                return Err(RewriteError(
                    "upstream's index is in UTF-16, which is not supported".to_owned(),
                ));
            }
            let mark: &[u8] = b"\xef\xbb\xbf";
            let text = self.head.strip_prefix(mark).unwrap_or(&self.head);
            let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
            let json = match first {
                _ if mark.starts_with(&self.head) && !last => return Ok(None),
                Some(b'<') => return Err(RewriteError("upstream's index is no YAML but HTML or XML".to_owned())),
                Some(byte) => *byte == b'{',
                None if last || self.head.len() > MAX_HELD => false,
                None => return Ok(None),
            };
            let Some(links) = self.links.take() else {
                return Ok(None);
            };
            let head = std::mem::take(&mut self.head);
            let mut body = if json {
                Body::Json(json::Scanner::new(CHARTS), links)
            } else {
                Body::Yaml(Box::new(Yaml::new(links)))
            };
            let start = if head.starts_with(mark) { mark.len() } else { 0 };
            out.extend_from_slice(&head[..start]);
            body.write(&head[start..], out)?;
            self.body = Some(body);
        }
        Ok(self.body.as_mut())
    }

    fn links(&mut self) -> Option<&mut LinkMap> {
        match (&mut self.body, &mut self.links) {
            (Some(Body::Json(_, links)), _) | (None, Some(links)) => Some(&mut links.0),
            (Some(Body::Yaml(yaml)), _) => Some(&mut yaml.links.0),
            (None, None) => None,
        }
    }
}

impl Body {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), RewriteError> {
        match self {
            Body::Json(scanner, links) => scanner.write(chunk, out, &mut |link| links.map(link)),
            Body::Yaml(yaml) => yaml.write(chunk, out),
        }
    }
}

impl Rewriter for Index {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), RewriteError> {
        if let Some(body) = &mut self.body {
            return body.write(chunk, out);
        }
        self.head.extend_from_slice(chunk);
        self.body(false, out).map(|_| ())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), RewriteError> {
        match self.body(true, out)? {
            Some(Body::Json(scanner, _)) => scanner.end(),
            Some(Body::Yaml(yaml)) => yaml.end(out),
            None => Ok(()),
        }
    }

    fn take_foreign(&mut self) -> Vec<String> {
        self.links().map(LinkMap::take_foreign).unwrap_or_default()
    }

    fn escaped(&self) -> u64 {
        match (&self.body, &self.links) {
            (Some(Body::Json(_, links)), _) | (None, Some(links)) => links.0.escaped(),
            (Some(Body::Yaml(yaml)), _) => yaml.links.0.escaped(),
            (None, None) => 0,
        }
    }
}

/// The longest line that is looked at as one (icons are kept in `data:` URLs).
const MAX_LINE: usize = 4 << 20;
/// The longest scalar that is held back or remembered.
const MAX_HELD: usize = 64 * 1024;
/// Collections inside each other.
const MAX_DEPTH: usize = 256;
/// Anchors that are remembered.
const MAX_ANCHORS: usize = 4096;

/// How far the way to a node follows `entries.*[].urls[]`.
type Level = u8;
const ROOT: Level = 0;
const ENTRIES: Level = 1;
const CHART: Level = 2;
const VERSION: Level = 3;
const URLS: Level = 4;
const URL: Level = 5;
/// The way leads elsewhere.
const DEAD: Level = u8::MAX;

/// The level of a mapping's value. A merge key stands for the mapping itself.
fn child_key(level: Level, key: Option<&str>) -> Level {
    match (level, key) {
        (ROOT | ENTRIES | VERSION, Some("<<")) => level,
        (ROOT, Some("entries")) => ENTRIES,
        (ENTRIES, _) => CHART,
        (VERSION, Some("urls")) => URLS,
        _ => DEAD,
    }
}

/// The level of a sequence's item.
fn child_item(level: Level) -> Level {
    match level {
        CHART => VERSION,
        URLS => URL,
        _ => DEAD,
    }
}

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
    /// The column of its keys or dashes; of no meaning in flow style.
    indent: usize,
    level: Level,
    /// The level of the value of the key read last (explicit and flow keys).
    next: Level,
    /// In flow style: the key is complete, the value comes. In block style: the key was an explicit one.
    value: bool,
    /// In flow style: the key was one that may be followed by `:` without a space.
    quoted: bool,
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
    /// A chart's URL.
    Link,
    /// Remembered, for an alias may put it where a chart's URL stands.
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
    /// A block scalar; `indent` is known after its first line.
    Literal {
        parent: i64,
        indent: Option<usize>,
        folded: bool,
    },
    /// Flow style, between scalars.
    Flow,
    FlowPlain,
}

struct Anchor {
    level: Level,
    /// Of a scalar that is no chart's URL.
    text: Option<String>,
}

/// The rewriter for YAML.
struct Yaml {
    links: Charts,
    /// The beginning of a line of which the end has not come yet.
    line: Vec<u8>,
    stack: Vec<Frame>,
    state: State,
    /// The level of the node that the innermost block collection expects, if it does.
    pending: Option<Level>,
    pending_anchor: Option<String>,
    role: Role,
    /// The scalar so far, as written, where it is not copied at once, and how much of it is not trailing space.
    held: Vec<u8>,
    holding: bool,
    text_end: usize,
    anchors: HashMap<String, Anchor>,
}

impl Yaml {
    fn new(links: Charts) -> Self {
        Yaml {
            links,
            line: Vec::new(),
            stack: Vec::new(),
            state: State::Block,
            pending: Some(ROOT),
            pending_anchor: None,
            role: Role::Skip,
            held: Vec::new(),
            holding: false,
            text_end: 0,
            anchors: HashMap::new(),
        }
    }

    /// Cuts into lines; LF, CR and CR LF end one.
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), RewriteError> {
        out.reserve(chunk.len());
        let mut at = 0;
        while at < chunk.len() {
            if self.line.last() == Some(&b'\r') {
                let mut line = std::mem::take(&mut self.line);
                line.pop();
                let both = chunk[at] == b'\n';
                at += usize::from(both);
                self.read_line(&line, if both { b"\r\n" } else { b"\r" }, out)?;
                continue;
            }
            let end = json::find_either::<b'\n', b'\r'>(chunk, at);
            // A carriage return at the very end may be half of a line break.
            if end >= chunk.len() || (chunk[end] == b'\r' && end + 1 == chunk.len()) {
                self.line.extend_from_slice(&chunk[at..]);
                break;
            }
            let length = if chunk[end..].starts_with(b"\r\n") { 2 } else { 1 };
            let (text, eol) = (&chunk[at..end], &chunk[end..end + length]);
            if self.line.is_empty() {
                self.read_line(text, eol, out)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(text);
                self.read_line(&line, eol, out)?;
            }
            at = end + length;
        }
        if self.line.len() > MAX_LINE {
            return Err(RewriteError(format!(
                "upstream's index has a line longer than {MAX_LINE} bytes"
            )));
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), RewriteError> {
        let line = std::mem::take(&mut self.line);
        let text = line.strip_suffix(b"\r").unwrap_or(&line);
        if !line.is_empty() {
            self.read_line(text, &line[text.len()..], out)?;
        }
        match self.state {
            State::Quoted(_) | State::Flow | State::FlowPlain => Err(RewriteError(
                "upstream's index ends in the middle of a value".to_owned(),
            )),
            _ => self.finish(out),
        }
    }

    /// One line and what ends it.
    fn read_line(&mut self, line: &[u8], eol: &[u8], out: &mut Vec<u8>) -> Result<(), RewriteError> {
        let indent = line.iter().take_while(|&&byte| byte == b' ').count();
        let blank = line[indent..].iter().all(|byte| is_white(*byte));
        // Up to where the line is copied or held.
        let mut copied = 0;
        match &mut self.state {
            State::Plain { .. } if blank => {}
            State::Plain { parent } => {
                let deeper = indent as i64 > *parent && line[indent] != b'#' && !is_marker(line);
                if deeper {
                    let end = plain_end(line, indent);
                    self.text_end = self.held.len() + end;
                } else {
                    self.finish(out)?;
                }
            }
            State::Literal { .. } if blank => {}
            State::Literal {
                parent, indent: wanted, ..
            } => {
                if wanted.is_none() && indent as i64 > *parent {
                    *wanted = Some(indent);
                }
                if wanted.is_none_or(|wanted| indent < wanted) {
                    self.finish(out)?;
                }
            }
            _ => {}
        }
        let mut at = 0;
        loop {
            match self.state {
                State::Block if at == 0 && !blank => at = self.block(line, indent, &mut copied, out)?,
                State::Block | State::Plain { .. } | State::Literal { .. } => break,
                State::Quoted(quote) => match quote_end(line, at, quote) {
                    Some(end) => {
                        at = end;
                        self.keep(line, &mut copied, at, out);
                        self.text_end = self.held.len();
                        self.finish(out)?;
                    }
                    None => break,
                },
                State::Flow => at = self.flow(line, at, &mut copied, out)?,
                State::FlowPlain => match self.flow_plain(line, at) {
                    (end, true) => {
                        at = end;
                        self.keep(line, &mut copied, at, out);
                        self.finish(out)?;
                    }
                    (_, false) => break,
                },
            }
            // A quoted scalar begun at the end of the line goes on in the next one.
            if at >= line.len() && !matches!(self.state, State::Quoted(_) | State::FlowPlain) {
                break;
            }
        }
        self.keep(line, &mut copied, line.len(), out);
        let target = if self.holding { &mut self.held } else { out };
        target.extend_from_slice(eol);
        if self.holding && self.held.len() > MAX_HELD {
            if self.role == Role::Link {
                return Err(RewriteError(format!(
                    "upstream's index has a URL longer than {MAX_HELD} bytes"
                )));
            }
            out.append(&mut self.held);
            self.holding = false;
            self.role = Role::Skip;
        }
        Ok(())
    }

    /// Moves the line up to `to` on: into what is held, or out.
    fn keep(&mut self, line: &[u8], copied: &mut usize, to: usize, out: &mut Vec<u8>) {
        let target = if self.holding { &mut self.held } else { out };
        target.extend_from_slice(&line[*copied..to]);
        *copied = to;
    }

    /// Begins a scalar at `at`.
    fn begin(&mut self, role: Role, line: &[u8], copied: &mut usize, at: usize, out: &mut Vec<u8>) {
        self.keep(line, copied, at, out);
        self.holding = role != Role::Skip;
        self.text_end = 0;
        self.role = role;
    }

    /// Ends the scalar: what is held goes out, changed if it is a chart's URL.
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), RewriteError> {
        let state = self.state;
        let flow = self.stack.last().is_some_and(Frame::is_flow);
        self.state = if flow { State::Flow } else { State::Block };
        if let (State::Quoted(_), Some(frame)) = (state, self.stack.last_mut()) {
            frame.quoted = true;
        }
        if !self.holding {
            return Ok(());
        }
        self.holding = false;
        let held = std::mem::take(&mut self.held);
        let (raw, rest) = held.split_at(self.text_end.min(held.len()));
        let text = match state {
            State::Literal { indent, folded, .. } => literal_text(&held, indent.unwrap_or(0), folded),
            State::Quoted(_) => flow_text(raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default(), raw.first()),
            _ => flow_text(raw, None),
        };
        match std::mem::replace(&mut self.role, Role::Skip) {
            Role::Link => {
                if let Some(link) = self.links.map(&text) {
                    if let State::Literal { .. } = state {
                        write_scalar(&link, Some(b'"'), out);
                        // The header of the block scalar, its lines and its final line breaks were its own.
                        let ends = held.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                        let first = ends.map_or(&[][..], |at| &held[at..]);
                        out.extend_from_slice(if first.starts_with(b"\r\n") {
                            b"\r\n"
                        } else {
                            &first[..first.len().min(1)]
                        });
                    } else {
                        let quote = if let State::Quoted(quote) = state {
                            Some(quote)
                        } else {
                            None
                        };
                        write_scalar(&link, quote, out);
                        out.extend_from_slice(rest);
                    }
                    return Ok(());
                }
            }
            Role::Key => {
                if let Some(frame) = self.stack.last_mut() {
                    frame.next = child_key(frame.level, Some(&text));
                }
            }
            Role::Anchored(name) => {
                if let Some(anchor) = self.anchors.get_mut(&name) {
                    anchor.text = Some(text);
                }
            }
            Role::Skip => {}
        }
        out.extend_from_slice(&held);
        Ok(())
    }

    fn reset(&mut self) {
        self.stack.clear();
        self.anchors.clear();
        self.pending = Some(ROOT);
        self.pending_anchor = None;
    }

    /// Leaves the block collections deeper than a column.
    fn leave(&mut self, column: usize) {
        while self.stack.last().is_some_and(|frame| frame.indent > column) {
            self.stack.pop();
            self.pending = None;
            self.pending_anchor = None;
        }
    }

    fn open(&mut self, kind: Kind, indent: usize, level: Level) -> Result<(), RewriteError> {
        if self.stack.len() == MAX_DEPTH {
            return Err(RewriteError(format!(
                "upstream's index is nested more than {MAX_DEPTH} deep"
            )));
        }
        if let Some(name) = self.pending_anchor.take() {
            self.anchor(name, level);
        }
        self.stack.push(Frame {
            kind,
            indent,
            level,
            next: DEAD,
            value: false,
            quoted: false,
        });
        Ok(())
    }

    fn anchor(&mut self, name: String, level: Level) {
        if self.anchors.len() < MAX_ANCHORS || self.anchors.contains_key(&name) {
            self.anchors.insert(name, Anchor { level, text: None });
        }
    }

    /// The innermost collection is a block mapping with keys in this column, opened if need be. Its level.
    fn mapping(&mut self, column: usize) -> Result<Level, RewriteError> {
        self.leave(column);
        // A sequence may stand in the column of the key that it is the value of.
        if self
            .stack
            .last()
            .is_some_and(|frame| frame.kind == Kind::BlockSequence && frame.indent == column)
        {
            self.stack.pop();
            self.pending = None;
        }
        match self.stack.last() {
            Some(frame) if frame.kind == Kind::BlockMap && frame.indent == column => Ok(frame.level),
            _ => {
                let level = self.pending.take().unwrap_or(DEAD);
                self.open(Kind::BlockMap, column, level)?;
                Ok(level)
            }
        }
    }

    /// The structure of a line in block style, up to the scalar or flow collection in it. Where that begins, or the end.
    fn block(
        &mut self,
        line: &[u8],
        indent: usize,
        copied: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, RewriteError> {
        let mut at = skip_white(line, indent);
        if line[at] == b'#' {
            return Ok(line.len());
        }
        at = indent;
        if is_marker(line) {
            self.reset();
            at = skip_white(line, 3);
            let content = line[0] == b'-' && at < line.len() && line[at] != b'#';
            return if content {
                self.properties_and_node(line, at, copied, out)
            } else {
                Ok(line.len())
            };
        }
        if line[0] == b'%' && self.stack.is_empty() && self.pending == Some(ROOT) {
            return Ok(line.len());
        }
        loop {
            let spaced = line.get(at + 1).is_none_or(|byte| is_white(*byte));
            match line[at] {
                b'-' if spaced => {
                    self.leave(at);
                    let level = match self.stack.last() {
                        Some(frame) if frame.kind == Kind::BlockSequence && frame.indent == at => frame.level,
                        _ => {
                            let level = self.pending.take().unwrap_or(DEAD);
                            self.open(Kind::BlockSequence, at, level)?;
                            level
                        }
                    };
                    self.pending_anchor = None;
                    self.pending = Some(child_item(level));
                }
                b'?' if spaced => {
                    let level = self.mapping(at)?;
                    let content = skip_white(line, at + 1);
                    let text = self.explicit_key(line, content);
                    if let Some(frame) = self.stack.last_mut() {
                        frame.next = child_key(level, text.as_deref());
                        frame.value = true;
                    }
                    self.pending = Some(DEAD);
                }
                b':' if spaced && self.is_explicit(at) => {
                    self.leave(at);
                    self.pending = self.stack.last().map(|frame| frame.next);
                }
                _ => break,
            }
            at = skip_white(line, at + 1);
            if at >= line.len() || line[at] == b'#' {
                return Ok(line.len());
            }
        }
        let start = at;
        let (after, anchor) = properties(line, at);
        if after < line.len()
            && let Some((text_end, colon)) = find_key(line, after)
        {
            // The properties before it are the key's own.
            let level = self.mapping(start)?;
            let key = matches!(level, ROOT | ENTRIES | VERSION).then(|| key_text(&line[after..text_end]));
            if let Some(frame) = self.stack.last_mut() {
                frame.value = false;
            }
            self.pending_anchor = None;
            self.pending = Some(child_key(level, key.as_deref()));
            at = skip_white(line, colon + 1);
            if at >= line.len() || line[at] == b'#' {
                return Ok(line.len());
            }
            return self.properties_and_node(line, at, copied, out);
        }
        if anchor.is_some() {
            self.pending_anchor = anchor;
        }
        if after >= line.len() {
            Ok(line.len())
        } else {
            self.node(line, after, copied, out)
        }
    }

    /// Whether the mapping in this column waits for the value of an explicit key.
    fn is_explicit(&self, column: usize) -> bool {
        let frame = self.stack.iter().rev().find(|frame| frame.indent <= column);
        frame.is_some_and(|frame| frame.kind == Kind::BlockMap && frame.indent == column && frame.value)
    }

    /// The text of a key after `? `, if it is a scalar of one line.
    fn explicit_key(&self, line: &[u8], at: usize) -> Option<String> {
        let (at, _) = properties(line, at);
        match line.get(at)? {
            quote @ (b'"' | b'\'') => quote_end(line, at + 1, *quote).map(|end| key_text(&line[at..end])),
            b'|' | b'>' | b'[' | b'{' | b'*' => None,
            _ => Some(key_text(&line[at..plain_end(line, at)])),
        }
    }

    fn properties_and_node(
        &mut self,
        line: &[u8],
        at: usize,
        copied: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, RewriteError> {
        let (at, anchor) = properties(line, at);
        self.pending_anchor = anchor;
        if at >= line.len() {
            Ok(line.len())
        } else {
            self.node(line, at, copied, out)
        }
    }

    /// A scalar, an alias or a flow collection in block style.
    fn node(&mut self, line: &[u8], at: usize, copied: &mut usize, out: &mut Vec<u8>) -> Result<usize, RewriteError> {
        let level = self.pending.take().unwrap_or(DEAD);
        let parent = self
            .stack
            .last()
            .map_or(-1, |frame| i64::try_from(frame.indent).unwrap_or(i64::MAX));
        match line[at] {
            b'*' => {
                self.pending_anchor = None;
                return Ok(self.alias(line, at, level, copied, out));
            }
            open @ (b'[' | b'{') => {
                self.open(
                    if open == b'[' {
                        Kind::FlowSequence
                    } else {
                        Kind::FlowMap
                    },
                    usize::MAX,
                    level,
                )?;
                self.state = State::Flow;
                return Ok(at + 1);
            }
            _ => {}
        }
        let role = self.role(level);
        self.begin(role, line, copied, at, out);
        match line[at] {
            quote @ (b'"' | b'\'') => {
                self.state = State::Quoted(quote);
                Ok(at + 1)
            }
            style @ (b'|' | b'>') => {
                let header = &line[at + 1..];
                let digit = header.iter().take(2).find(|byte| matches!(byte, b'1'..=b'9'));
                let indent = digit.map(|digit| (parent.max(0)) as usize + usize::from(digit - b'0'));
                self.state = State::Literal {
                    parent,
                    indent,
                    folded: style == b'>',
                };
                Ok(line.len())
            }
            _ => {
                self.state = State::Plain { parent };
                self.text_end = plain_end(line, at) - at;
                Ok(line.len())
            }
        }
    }

    /// What becomes of the scalar that begins at a node of this level.
    fn role(&mut self, level: Level) -> Role {
        match self.pending_anchor.take() {
            anchor if level == URL => {
                if let Some(name) = anchor {
                    self.anchor(name, level);
                }
                Role::Link
            }
            Some(name) => {
                self.anchor(name.clone(), level);
                if self.anchors.contains_key(&name) {
                    Role::Anchored(name)
                } else {
                    Role::Skip
                }
            }
            None => Role::Skip,
        }
    }

    /// An alias: it stays if what it stands for is rewritten where it is written. Where the alias ends.
    fn alias(&mut self, line: &[u8], at: usize, level: Level, copied: &mut usize, out: &mut Vec<u8>) -> usize {
        let end = word_end(line, at);
        if level == DEAD {
            return end;
        }
        let name = String::from_utf8_lossy(&line[at + 1..end]);
        match self.anchors.get(name.as_ref()) {
            Some(anchor) if anchor.level == level => {}
            Some(Anchor { text: Some(text), .. }) if level == URL => {
                if let Some(link) = self.links.map(text) {
                    self.keep(line, copied, at, out);
                    write_scalar(&link, Some(b'"'), out);
                    *copied = end;
                }
            }
            _ => self.links.0.count_escaped(),
        }
        end
    }

    /// Flow style from `at` on, up to a scalar, the end of the outermost collection or of the line.
    fn flow(
        &mut self,
        line: &[u8],
        mut at: usize,
        copied: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, RewriteError> {
        while at < line.len() {
            let byte = line[at];
            if is_white(byte) {
                at += 1;
                continue;
            }
            if byte == b'#' && (at == 0 || is_white(line[at - 1])) {
                return Ok(line.len());
            }
            let ends = line
                .get(at + 1)
                .is_none_or(|next| is_white(*next) || is_flow_indicator(*next));
            let Some(frame) = self.stack.last_mut().filter(|frame| frame.is_flow()) else {
                self.state = State::Block;
                return Ok(at);
            };
            let level = match frame.kind {
                Kind::FlowSequence if !frame.value => child_item(frame.level),
                Kind::FlowMap if frame.value => frame.next,
                _ => DEAD,
            };
            match byte {
                b',' => {
                    (frame.value, frame.quoted, frame.next) = (false, false, child_key(frame.level, None));
                    at += 1;
                }
                b'[' | b'{' => {
                    let kind = if byte == b'[' {
                        Kind::FlowSequence
                    } else {
                        Kind::FlowMap
                    };
                    self.open(kind, usize::MAX, level)?;
                    if let Some(frame) = self.stack.last_mut() {
                        frame.next = child_key(level, None);
                    }
                    at += 1;
                }
                b']' | b'}' => {
                    self.stack.pop();
                    self.pending_anchor = None;
                    at += 1;
                    match self.stack.last_mut().filter(|frame| frame.is_flow()) {
                        Some(frame) => frame.quoted = true,
                        None => {
                            self.state = State::Block;
                            return Ok(at);
                        }
                    }
                }
                b':' if !frame.value && (ends || frame.quoted) => {
                    frame.value = true;
                    at += 1;
                }
                b'?' if ends => at += 1,
                b'&' | b'!' => {
                    let end = word_end(line, at);
                    if byte == b'&' {
                        self.pending_anchor = Some(String::from_utf8_lossy(&line[at + 1..end]).into_owned());
                    }
                    at = end.max(at + 1);
                }
                b'*' => {
                    self.pending_anchor = None;
                    at = self.alias(line, at, level, copied, out).max(at + 1);
                }
                _ => {
                    let key =
                        frame.kind == Kind::FlowMap && !frame.value && matches!(frame.level, ROOT | ENTRIES | VERSION);
                    frame.quoted = false;
                    let role = if key { Role::Key } else { self.role(level) };
                    self.pending_anchor = None;
                    self.begin(role, line, copied, at, out);
                    let quote = matches!(byte, b'"' | b'\'');
                    self.state = if quote { State::Quoted(byte) } else { State::FlowPlain };
                    return Ok(at + usize::from(quote));
                }
            }
        }
        Ok(at)
    }

    /// A plain scalar in flow style from `at` on: where it ends, and whether it does in this line.
    fn flow_plain(&mut self, line: &[u8], at: usize) -> (usize, bool) {
        // What is held already of this line begins where the scalar does, or is nothing.
        let base = self.held.len();
        let begin = at;
        let mut at = at;
        while at < line.len() {
            let byte = line[at];
            let next = line.get(at + 1);
            let ends = match byte {
                _ if is_flow_indicator(byte) => true,
                b':' => next.is_none_or(|next| is_white(*next) || is_flow_indicator(*next)),
                b'#' => at == 0 || is_white(line[at - 1]),
                _ => false,
            };
            if ends {
                return (at, true);
            }
            at += 1;
            if !is_white(byte) {
                self.text_end = base + at - if base == 0 { begin } else { 0 };
            }
        }
        (at, false)
    }
}

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_flow_indicator(byte: u8) -> bool {
    matches!(byte, b',' | b'[' | b']' | b'{' | b'}')
}

fn skip_white(line: &[u8], at: usize) -> usize {
    line.iter()
        .skip(at)
        .position(|byte| !is_white(*byte))
        .map_or(line.len(), |white| at + white)
}

/// `---` or `...`, which end every block style scalar and collection.
fn is_marker(line: &[u8]) -> bool {
    (line.starts_with(b"---") || line.starts_with(b"...")) && line.get(3).is_none_or(|byte| is_white(*byte))
}

/// Where a word (anchor, alias, tag) ends.
fn word_end(line: &[u8], at: usize) -> usize {
    let end = |byte: &u8| is_white(*byte) || is_flow_indicator(*byte);
    line.iter()
        .skip(at)
        .position(end)
        .map_or(line.len(), |length| at + length)
}

/// Skips tags and anchors, and gives the name of the anchor. A comment after them counts as the end.
fn properties(line: &[u8], mut at: usize) -> (usize, Option<String>) {
    let mut anchor = None;
    while let Some(first @ (b'&' | b'!')) = line.get(at) {
        let end = word_end(line, at);
        if *first == b'&' {
            anchor = Some(String::from_utf8_lossy(&line[at + 1..end]).into_owned());
        }
        at = skip_white(line, end);
        if line.get(at) == Some(&b'#') || end == at {
            return (if end == at && at < line.len() { at } else { line.len() }, anchor);
        }
    }
    (at, anchor)
}

/// Behind the closing quote, if it is in this line; `at` is behind the opening one.
fn quote_end(line: &[u8], mut at: usize, quote: u8) -> Option<usize> {
    loop {
        if quote == b'"' {
            at = json::find_either::<b'"', b'\\'>(line, at);
            match line.get(at)? {
                b'"' => return Some(at + 1),
                _ => at += 2,
            }
        } else {
            at = json::find_either::<b'\'', b'\''>(line, at);
            line.get(at)?;
            if line.get(at + 1) != Some(&b'\'') {
                return Some(at + 1);
            }
            at += 2;
        }
    }
}

/// Where the text of a plain scalar ends in this line: before a comment and trailing space.
fn plain_end(line: &[u8], at: usize) -> usize {
    let mut end = line.len();
    let mut from = at;
    while let Some(hash) = line[from..]
        .iter()
        .position(|&byte| byte == b'#')
        .map(|found| from + found)
    {
        if hash > at && is_white(line[hash - 1]) {
            end = hash;
            break;
        }
        from = hash + 1;
    }
    while end > at && is_white(line[end - 1]) {
        end -= 1;
    }
    end
}

/// The end of the key that begins at `at`, and its colon, if there is one: a scalar of one line before `: `.
fn find_key(line: &[u8], at: usize) -> Option<(usize, usize)> {
    let spaced = |colon: usize| line.get(colon + 1).is_none_or(|byte| is_white(*byte));
    match line[at] {
        quote @ (b'"' | b'\'') => {
            let end = quote_end(line, at + 1, quote)?;
            let colon = skip_white(line, end);
            (line.get(colon) == Some(&b':') && spaced(colon)).then_some((end, colon))
        }
        b'[' | b'{' | b'|' | b'>' | b'#' | b'%' | b'@' | b'`' => None,
        _ => {
            let mut colon = at;
            loop {
                colon = json::find_either::<b':', b'#'>(line, colon);
                match line.get(colon)? {
                    b':' if spaced(colon) => return Some((colon, colon)),
                    b'#' if colon > at && is_white(line[colon - 1]) => return None,
                    _ => colon += 1,
                }
            }
        }
    }
}

/// The text of a key as written.
fn key_text(raw: &[u8]) -> String {
    match raw.first() {
        Some(b'"' | b'\'') => flow_text(&raw[1..raw.len().max(2) - 1], raw.first()),
        _ => flow_text(raw, None),
    }
}

/// The text of a plain or quoted scalar, between its quotes: escapes resolved, lines folded (YAML 1.2 section 7.3).
fn flow_text(raw: &[u8], quote: Option<&u8>) -> String {
    let text = String::from_utf8_lossy(raw).replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    // What folding may not trim.
    let mut solid = 0;
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\n', _) => {
                out.truncate(out.trim_end_matches([' ', '\t']).len().max(solid));
                let mut breaks = 1;
                while let Some(white) = characters.next_if(|next| matches!(next, ' ' | '\t' | '\n')) {
                    breaks += usize::from(white == '\n');
                }
                if breaks == 1 {
                    out.push(' ');
                } else {
                    out.extend(std::iter::repeat_n('\n', breaks - 1));
                }
                solid = out.len();
            }
            ('\'', Some(b'\'')) => {
                characters.next_if_eq(&'\'');
                out.push('\'');
            }
            ('\\', Some(b'"')) => {
                let mut hex = |digits: usize| {
                    let code: String = (0..digits)
                        .filter_map(|_| characters.next_if(char::is_ascii_hexdigit))
                        .collect();
                    u32::from_str_radix(&code, 16)
                        .ok()
                        .and_then(char::from_u32)
                        .unwrap_or(char::REPLACEMENT_CHARACTER)
                };
                let escaped = match characters.peek().copied() {
                    Some('x' | 'u' | 'U') => match characters.next() {
                        Some('x') => {
                            let code: String = (0..2)
                                .filter_map(|_| characters.next_if(char::is_ascii_hexdigit))
                                .collect();
                            u32::from_str_radix(&code, 16).ok().and_then(char::from_u32)
                        }
                        Some('u') => Some(hex(4)),
                        _ => Some(hex(8)),
                    },
                    Some('\n') => {
                        characters.next();
                        while characters.next_if(|next| matches!(next, ' ' | '\t')).is_some() {}
                        None
                    }
                    Some(other) => {
                        characters.next();
                        Some(match other {
                            '0' => '\0',
                            'a' => '\x07',
                            'b' => '\x08',
                            't' => '\t',
                            'n' => '\n',
                            'v' => '\x0b',
                            'f' => '\x0c',
                            'r' => '\r',
                            'e' => '\x1b',
                            'N' => '\u{85}',
                            '_' => '\u{a0}',
                            'L' => '\u{2028}',
                            'P' => '\u{2029}',
                            same => same,
                        })
                    }
                    None => None,
                };
                out.extend(escaped);
                solid = out.len();
            }
            (other, _) => out.push(other),
        }
    }
    out
}

/// The text of a block scalar, its header included in `raw`, final line breaks excluded (section 8.1).
fn literal_text(raw: &[u8], indent: usize, folded: bool) -> String {
    let text = String::from_utf8_lossy(raw).replace("\r\n", "\n").replace('\r', "\n");
    let lines = text
        .split('\n')
        .skip(1)
        .map(|line| line.get(indent..).unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join("\n");
    let text = text.trim_end_matches('\n');
    if folded {
        flow_text(text.as_bytes(), None)
    } else {
        text.to_owned()
    }
}

/// Writes a scalar in the style it had, or quoted where that would not do.
fn write_scalar(text: &str, quote: Option<u8>, out: &mut Vec<u8>) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~/%+@=-".contains(&byte);
    match quote {
        Some(b'\'') if !text.contains(char::is_control) => {
            out.extend_from_slice(format!("'{}'", text.replace('\'', "''")).as_bytes());
        }
        // With a slash and these letters it is no number, date or truth value to anyone.
        None if text.starts_with('.') && text.contains('/') && text.bytes().all(plain) => {
            out.extend_from_slice(text.as_bytes());
        }
        _ => {
            out.push(b'"');
            json::encode(text, out);
            out.push(b'"');
        }
    }
}

#[cfg(test)]
mod tests;
