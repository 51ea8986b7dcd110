//! Flow style: `[…]`, `{…}` and the scalars in them.

use super::text::{is_flow_indicator, is_white, word_end};
use super::{DEAD, Kind, Level, Line, Role, Scanner, State};
use crate::formats::RewriteError;

impl Scanner {
    pub(super) fn open_flow(&mut self, bracket: u8, level: Level) -> Result<(), RewriteError> {
        let kind = if bracket == b'[' {
            Kind::FlowSequence
        } else {
            Kind::FlowMap
        };
        self.open(kind, usize::MAX, level)
    }

    /// Flow style from `at` on, up to a scalar, the end of the outermost collection or of the line.
    pub(super) fn flow(&mut self, line: &mut Line<'_>, mut at: usize) -> Result<usize, RewriteError> {
        let text = line.text;
        while let Some(&byte) = text.get(at) {
            if is_white(byte) {
                at += 1;
                continue;
            }
            if byte == b'#' && (at == 0 || is_white(text[at - 1])) {
                return Ok(text.len());
            }
            let Some(frame) = self.stack.last().filter(|frame| frame.is_flow()) else {
                self.state = State::Block;
                return Ok(at);
            };
            let (level, value, adjacent, map) = (frame.level, frame.value, frame.adjacent, frame.kind == Kind::FlowMap);
            let node = match (map, value) {
                (true, true) => frame.next,
                (false, false) => self.child_item(level),
                // A key, or the value of a pair in a sequence.
                _ => DEAD,
            };
            let spaced = text
                .get(at + 1)
                .is_none_or(|next| is_white(*next) || is_flow_indicator(*next));
            match byte {
                b',' => {
                    self.flow_step(false, false, DEAD);
                    at += 1;
                }
                b'[' | b'{' => {
                    self.open_flow(byte, node)?;
                    at += 1;
                }
                b']' | b'}' => {
                    self.stack.pop();
                    self.pending_anchor = None;
                    at += 1;
                    match self.stack.last_mut().filter(|frame| frame.is_flow()) {
                        Some(frame) => frame.adjacent = true,
                        None => {
                            self.state = State::Block;
                            return Ok(at);
                        }
                    }
                }
                b':' if spaced || (adjacent && !value) => {
                    // A second one is a mistake that may not keep us here.
                    if !value {
                        let next = self.stack.last().map_or(DEAD, |frame| frame.next);
                        self.flow_step(true, false, next);
                    }
                    at += 1;
                }
                b'?' if spaced => at += 1,
                b'&' | b'!' => {
                    let end = word_end(text, at);
                    if byte == b'&' {
                        self.pending_anchor = Some(String::from_utf8_lossy(&text[at + 1..end]).into_owned());
                    }
                    at = end.max(at + 1);
                }
                b'*' => {
                    self.pending_anchor = None;
                    at = self.alias(line, at, node).max(at + 1);
                }
                _ => {
                    let role = if map && !value && self.has_keys(level) {
                        Role::Key
                    } else {
                        self.role(node)
                    };
                    self.pending_anchor = None;
                    self.begin(line, at, role);
                    let quoted = matches!(byte, b'"' | b'\'');
                    self.state = if quoted { State::Quoted(byte) } else { State::FlowPlain };
                    return Ok(at + usize::from(quoted));
                }
            }
        }
        Ok(at)
    }

    fn flow_step(&mut self, value: bool, adjacent: bool, next: Level) {
        if let Some(frame) = self.stack.last_mut() {
            (frame.value, frame.adjacent, frame.next) = (value, adjacent, next);
        }
    }

    /// A plain scalar in flow style from `at` on: where it ends, and whether it does in this line.
    pub(super) fn flow_plain(&mut self, line: &Line<'_>, at: usize) -> (usize, bool) {
        for (at, &byte) in line.text.iter().enumerate().skip(at) {
            let next = line.text.get(at + 1);
            let ends = match byte {
                b':' => next.is_none_or(|next| is_white(*next) || is_flow_indicator(*next)),
                b'#' => at == 0 || is_white(line.text[at - 1]),
                _ => is_flow_indicator(byte),
            };
            if ends {
                return (at, true);
            }
            if !is_white(byte) {
                self.text_end = self.held.len() + at + 1 - line.copied;
            }
        }
        (line.text.len(), false)
    }
}
