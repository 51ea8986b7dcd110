//! XML of any length, read while it comes. What is not well-formed ends it, and is never an error: the checksums decide later
//! whether a file is the right one. Nothing is fetched or expanded: only the entities that XML predefines are resolved.

use std::ops::ControlFlow;

use memchr::memrchr;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// The longest tag, comment or text; a document with a longer one is read to there.
pub(super) const MAX_HELD: usize = 1 << 20;

/// Takes what is read; breaking ends it.
pub(super) type Take<'t> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 't;

/// The reader.
#[derive(Default)]
pub(super) struct Xml {
    /// What was not read yet: a tag that has not come whole, and what is behind it.
    held: Vec<u8>,
    /// How long that has to be for another look: each time twice as long, or a slow sender would cost too much.
    enough: usize,
    /// Nothing more is read.
    done: bool,
}

impl Xml {
    pub(super) fn write(&mut self, chunk: &[u8], take: &mut Take<'_>) {
        if self.done {
            return;
        }
        self.held.extend_from_slice(chunk);
        if self.held.len() < self.enough {
            return;
        }
        // Before a tag, no text is cut; whether a tag is, the parser tells.
        self.read(memrchr(b'<', &self.held).unwrap_or(0), take);
        self.enough = (self.held.len() * 2).min(MAX_HELD);
        if self.held.len() > MAX_HELD {
            self.end(take);
        }
    }

    pub(super) fn end(&mut self, take: &mut Take<'_>) {
        if !self.done {
            self.read(self.held.len(), take);
            self.done = true;
        }
    }

    /// Reads what is held up to `end`, or to a tag that ends behind it.
    fn read(&mut self, end: usize, take: &mut Take<'_>) {
        let mut held = std::mem::take(&mut self.held);
        let behind = held.split_off(end);
        let text = String::from_utf8_lossy(&held);
        let mut xml = Reader::from_str(&text);
        let config = xml.config_mut();
        config.allow_dangling_amp = true;
        config.allow_unmatched_ends = true;
        config.check_end_names = false;
        config.expand_empty_elements = true;
        let mut left = text.len();
        while let Ok(event) = xml.read_event() {
            if matches!(event, Event::Eof) {
                left = 0;
                break;
            }
            if take(event).is_break() {
                self.done = true;
                return;
            }
            left = xml.get_ref().len();
        }
        self.held = [&text.as_bytes()[text.len() - left..], &behind].concat();
    }

    /// How much is held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    #[cfg(test)]
    pub(super) fn is_done(&self) -> bool {
        self.done
    }
}

/// The value of the attribute with this local name, entities resolved; with one that is unknown, as written.
pub(super) fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let mut attributes = tag.attributes();
    // Attributes that are written twice cost a comparison of all with all to find.
    let mut attributes = attributes.with_checks(false).flatten();
    let found = attributes.find(|attribute| attribute.key.local_name().as_ref() == name)?;
    let resolved = found.normalized_value(XmlVersion::Implicit1_0);
    Some(resolved.unwrap_or(found.value).into_owned())
}

/// Whether a reference names a file below the folder it is relative to.
pub(super) fn is_below(href: &str) -> bool {
    let first = href.split('/').next().unwrap_or(href);
    !href.is_empty()
        && !first.is_empty()
        && !first.contains(':')
        && !href.contains(['?', '#', '\\', '\0'])
        && href.split('/').all(|segment| segment != ".." && segment != ".")
}
