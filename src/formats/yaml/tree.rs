//! Where a node stands in the document: the open collections, what each expects, and what anchors stand for.

use std::collections::HashMap;

use super::scan::Stop;
use crate::formats::json::{Place, Step, same_name};

/// Collections inside each other: as many as Helm's library reads.
const MAX_DEPTH: usize = 10_000;
/// Anchors that are remembered.
const MAX_ANCHORS: usize = 4096;

/// How many steps of the place the way to a node follows.
pub(super) type Level = usize;
/// The way leads elsewhere.
pub(super) const DEAD: Level = Level::MAX;

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub level: Level,
    /// Behind a merge key: the mapping here, or the mappings in the sequence here, are part of one at this level.
    pub merged: bool,
}

impl Spot {
    const fn at(level: Level) -> Self {
        Spot { level, merged: false }
    }
}

/// What is expected next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A key or an item, or the end.
    Start,
    /// The key behind a `?`.
    Key,
    /// The `:` behind a key.
    Keyed,
    /// The value behind a `:`, the item behind a `-`, the document itself; it may be nothing.
    Value,
    /// What separates this from what follows.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Document,
    BlockMap,
    BlockSequence,
    FlowMap,
    FlowSequence,
}

/// An open collection.
#[derive(Debug)]
struct Frame {
    kind: Kind,
    /// Of its keys or dashes; in flow style, of the block collection around it.
    column: i64,
    spot: Spot,
    phase: Phase,
    /// Where the value of the key that was read last stands.
    next: Spot,
}

/// What a node is.
pub(super) enum Slot {
    Key,
    Node(Spot),
}

/// What stands before a node.
#[derive(Debug, Default)]
pub(super) struct Properties {
    pub anchor: Option<String>,
    pub tagged: bool,
}

impl Properties {
    pub(super) fn is_empty(&self) -> bool {
        self.anchor.is_none() && !self.tagged
    }

    /// Takes over what stands closer to the node.
    pub(super) fn join(&mut self, closer: Properties) -> Result<(), Stop> {
        if (self.anchor.is_some() && closer.anchor.is_some()) || (self.tagged && closer.tagged) {
            return Err(Stop::Wrong("a value with two anchors or two tags"));
        }
        self.tagged |= closer.tagged;
        self.anchor = closer.anchor.or(self.anchor.take());
        Ok(())
    }
}

struct Anchor {
    level: Level,
    scalar: bool,
    /// Of a scalar, if it is short.
    text: Option<String>,
}

/// The open collections and the anchors of a document.
pub(super) struct Tree {
    place: Place,
    stack: Vec<Frame>,
    flow: usize,
    anchors: HashMap<String, Anchor>,
    /// Of the node that is expected, from the lines before.
    pub properties: Properties,
}

impl Tree {
    pub(super) fn new(place: Place) -> Self {
        let mut tree = Tree {
            place,
            stack: Vec::new(),
            flow: 0,
            anchors: HashMap::new(),
            properties: Properties::default(),
        };
        tree.restart();
        tree
    }

    /// Begins a document.
    fn restart(&mut self) {
        self.stack.clear();
        self.anchors.clear();
        self.stack.push(Frame {
            kind: Kind::Document,
            column: -1,
            spot: Spot::at(0),
            phase: Phase::Value,
            next: Spot::at(0),
        });
    }

    /// Ends the document at a `---` or `...`.
    pub(super) fn end_document(&mut self) -> Result<(), Stop> {
        self.leave(-1)?;
        self.settle()?;
        self.restart();
        Ok(())
    }

    /// Whether nothing of the document has come.
    pub(super) fn is_new(&self) -> bool {
        self.stack.len() == 1 && self.top().phase == Phase::Value && self.properties.is_empty()
    }

    pub(super) fn in_flow(&self) -> bool {
        self.flow > 0
    }

    /// The column of the innermost block collection.
    pub(super) fn indent(&self) -> i64 {
        self.top().column
    }

    fn top(&self) -> &Frame {
        // The document itself is never left.
        self.stack.last().unwrap_or_else(|| unreachable!())
    }

    fn top_mut(&mut self) -> &mut Frame {
        // The document itself is never left.
        self.stack.last_mut().unwrap_or_else(|| unreachable!())
    }

    fn step(&self, level: Level) -> Option<Step> {
        self.place.get(level).copied()
    }

    /// Whether a node here is a link.
    pub(super) fn is_chosen(&self, spot: Spot) -> bool {
        spot.level == self.place.len() && !spot.merged
    }

    fn value_of(&self, level: Level, key: &str) -> Spot {
        Spot::at(match self.step(level) {
            Some(Step::Key(wanted)) if same_name(key, wanted) => level + 1,
            Some(Step::Any) => level + 1,
            _ => DEAD,
        })
    }

    fn item(&self) -> Spot {
        let spot = self.top().spot;
        if spot.merged {
            spot
        } else if self.step(spot.level) == Some(Step::Item) {
            Spot::at(spot.level + 1)
        } else {
            Spot::at(DEAD)
        }
    }

    /// Takes the place of the node that has come.
    pub(super) fn slot(&mut self) -> Result<Slot, Stop> {
        let (kind, phase, next) = (self.top().kind, self.top().phase, self.top().next);
        let (slot, phase) = match (kind, phase) {
            (Kind::Document, Phase::Value) => (Slot::Node(Spot::at(0)), Phase::Done),
            (Kind::BlockSequence, Phase::Value) => (Slot::Node(self.item()), Phase::Start),
            (Kind::FlowSequence, Phase::Start) => (Slot::Node(self.item()), Phase::Done),
            (_, Phase::Key) | (Kind::FlowMap, Phase::Start) => (Slot::Key, Phase::Keyed),
            (Kind::BlockMap, Phase::Value) => (Slot::Node(next), Phase::Start),
            (Kind::FlowMap | Kind::FlowSequence, Phase::Value) => (Slot::Node(next), Phase::Done),
            _ => return Err(Stop::Wrong("a value where none can stand")),
        };
        self.top_mut().phase = phase;
        Ok(slot)
    }

    /// Anchors and tags that nothing follows are those of an empty scalar.
    pub(super) fn settle(&mut self) -> Result<(), Stop> {
        if self.properties.is_empty() {
            return Ok(());
        }
        let properties = std::mem::take(&mut self.properties);
        match self.slot()? {
            Slot::Key => self.key("", false, properties),
            Slot::Node(spot) => {
                self.scalar(spot, properties, Some(String::new()));
                Ok(())
            }
        }
    }

    /// Leaves the block collections deeper than a column.
    pub(super) fn leave(&mut self, column: i64) -> Result<(), Stop> {
        if self.in_flow() || self.indent() <= column {
            return Ok(());
        }
        self.settle()?;
        while self.indent() > column {
            self.stack.pop();
        }
        Ok(())
    }

    fn open(&mut self, kind: Kind, column: i64) -> Result<(), Stop> {
        let properties = std::mem::take(&mut self.properties);
        let Slot::Node(spot) = self.slot()? else {
            return Err(Stop::Wrong("a collection as a key"));
        };
        if self.stack.len() > MAX_DEPTH {
            return Err(Stop::Wrong("collections nested more than 10000 deep"));
        }
        let map = matches!(kind, Kind::BlockMap | Kind::FlowMap);
        let spot = if map { Spot::at(spot.level) } else { spot };
        if let Some(name) = properties.anchor {
            let level = if spot.merged { DEAD } else { spot.level };
            self.remember(
                name,
                Anchor {
                    level,
                    scalar: false,
                    text: None,
                },
            );
        }
        self.stack.push(Frame {
            kind,
            column,
            spot,
            phase: Phase::Start,
            next: Spot::at(DEAD),
        });
        Ok(())
    }

    /// The newest of a name counts. One that is forgotten is unknown, so that its alias is an error.
    fn remember(&mut self, name: String, anchor: Anchor) {
        if self.anchors.len() < MAX_ANCHORS || self.anchors.contains_key(&name) {
            self.anchors.insert(name, anchor);
        }
    }

    /// A scalar that is no key.
    pub(super) fn scalar(&mut self, spot: Spot, properties: Properties, text: Option<String>) {
        if let Some(name) = properties.anchor {
            self.remember(
                name,
                Anchor {
                    level: spot.level,
                    scalar: true,
                    text,
                },
            );
        }
    }

    /// A `-`.
    pub(super) fn dash(&mut self, column: i64) -> Result<(), Stop> {
        let top = self.top();
        match (top.kind, top.phase) {
            _ if top.column < column => self.open(Kind::BlockSequence, column)?,
            (Kind::BlockSequence, _) => self.settle()?,
            // In the column of the key that it is the value of.
            (Kind::BlockMap, Phase::Value | Phase::Key) => self.open(Kind::BlockSequence, column)?,
            _ => return Err(Stop::Wrong("an item where none can stand")),
        }
        self.top_mut().phase = Phase::Value;
        Ok(())
    }

    /// Makes the innermost collection a block mapping in this column, for a key.
    fn mapping(&mut self, column: i64) -> Result<(), Stop> {
        if self.indent() < column {
            return self.open(Kind::BlockMap, column);
        }
        self.settle()?;
        // A sequence in the same column is over.
        if self.top().kind == Kind::BlockSequence {
            self.stack.pop();
        }
        if self.top().kind != Kind::BlockMap || self.top().column != column {
            return Err(Stop::Wrong("a key where none can stand"));
        }
        Ok(())
    }

    /// A `?`.
    pub(super) fn question(&mut self, column: i64) -> Result<(), Stop> {
        if !self.in_flow() {
            self.mapping(column)?;
        } else if self.top().phase != Phase::Start || !self.properties.is_empty() {
            return Err(Stop::Wrong("a key where none can stand"));
        }
        self.top_mut().phase = Phase::Key;
        Ok(())
    }

    /// A `:` that does not stand in the line of its key, or stands in flow style.
    pub(super) fn colon(&mut self, column: i64) -> Result<(), Stop> {
        self.settle()?;
        // A sequence in the same column was the key.
        if self.top().kind == Kind::BlockSequence {
            self.stack.pop();
        }
        let top = self.top();
        let here = self.in_flow() || (top.kind == Kind::BlockMap && top.column == column);
        match top.phase {
            Phase::Keyed if here => {}
            Phase::Key if here => self.key("", false, Properties::default())?,
            _ => return Err(Stop::Wrong("a value where none can stand")),
        }
        self.begin_value();
        Ok(())
    }

    /// Where a key of one line stands: in a block mapping in this column, or first in a pair in a flow sequence.
    pub(super) fn begin_key(&mut self, column: i64) -> Result<(), Stop> {
        if self.in_flow() { Ok(()) } else { self.mapping(column) }
    }

    /// A key, and whether it may be a merge key: a plain one without a tag.
    pub(super) fn key(&mut self, text: &str, plain: bool, properties: Properties) -> Result<(), Stop> {
        let pair = self.top().kind == Kind::FlowSequence;
        // In a flow sequence, the pair is a mapping by itself.
        let level = if pair { self.item().level } else { self.top().spot.level };
        let live = matches!(self.step(level), Some(Step::Key(_) | Step::Any));
        if live && properties.tagged {
            return Err(Stop::Wrong("a key with a tag"));
        }
        let next = if live && plain && text == "<<" {
            Spot { level, merged: true }
        } else {
            self.value_of(level, text)
        };
        if let Some(name) = properties.anchor {
            self.remember(
                name,
                Anchor {
                    level: DEAD,
                    scalar: true,
                    text: (!properties.tagged).then(|| text.to_owned()),
                },
            );
        }
        let top = self.top_mut();
        (top.next, top.phase) = (next, Phase::Keyed);
        Ok(())
    }

    /// The `:` that stands right behind a key of one line.
    pub(super) fn begin_value(&mut self) {
        self.top_mut().phase = Phase::Value;
    }

    /// Whether a scalar before a `:` is the key of a pair here.
    pub(super) fn takes_pair(&self) -> bool {
        self.top().kind == Kind::FlowSequence && self.top().phase == Phase::Start
    }

    pub(super) fn open_flow(&mut self, bracket: u8) -> Result<(), Stop> {
        let kind = if bracket == b'[' {
            Kind::FlowSequence
        } else {
            Kind::FlowMap
        };
        self.open(kind, self.indent())?;
        self.flow += 1;
        Ok(())
    }

    pub(super) fn close_flow(&mut self, bracket: u8) -> Result<(), Stop> {
        self.settle()?;
        let wanted = if bracket == b']' {
            Kind::FlowSequence
        } else {
            Kind::FlowMap
        };
        if self.top().kind != wanted {
            return Err(Stop::Wrong("a bracket that closes nothing"));
        }
        self.stack.pop();
        self.flow -= 1;
        Ok(())
    }

    pub(super) fn comma(&mut self) -> Result<(), Stop> {
        self.settle()?;
        if !self.in_flow() || self.top().phase == Phase::Start {
            return Err(Stop::Wrong("a comma where none can stand"));
        }
        self.top_mut().phase = Phase::Start;
        Ok(())
    }

    /// The text that an alias used as a key stands for.
    pub(super) fn alias_text(&self, name: &str) -> Result<&str, Stop> {
        let anchor = self.anchors.get(name);
        anchor
            .and_then(|anchor| anchor.text.as_deref())
            .ok_or(Stop::Wrong("an alias as a key whose text is not known here"))
    }

    /// An alias that is no key. It stays where what it stands for was read as what it is here, or cannot be a link; the
    /// text of a scalar is given, which is to be written out. Anything else is refused.
    pub(super) fn alias(&self, spot: Spot, name: &str) -> Result<Option<&str>, Stop> {
        if spot.level == DEAD {
            return Ok(None);
        }
        match self.anchors.get(name) {
            Some(anchor) if anchor.scalar && self.is_chosen(spot) && anchor.level != spot.level => anchor
                .text
                .as_deref()
                .map(Some)
                .ok_or(Stop::Wrong("an alias of a long text where a link stands")),
            Some(anchor) if anchor.scalar || anchor.level == spot.level => Ok(None),
            Some(_) => Err(Stop::Wrong("an alias of what is written elsewhere, where links stand")),
            None => Err(Stop::Wrong("an alias of an anchor that is not known here")),
        }
    }
}
