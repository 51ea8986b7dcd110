//! Where things end in YAML that has not come whole. Nothing here changes anything, so that a look that comes to the end
//! of what is there is taken again when there is more.

/// Why a look was in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// What is there does not tell.
    More,
    /// This is not what Helm's library reads, and why.
    Wrong(&'static str),
}

/// The document as far as it is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub bytes: &'a [u8],
    /// Nothing comes after it.
    pub last: bool,
}

/// All bytes but these and those that line breaks begin with.
const fn all_but(special: &[u8]) -> [bool; 256] {
    let mut table = [true; 256];
    let breaks = b"\n\r\0\xc2\xe2";
    let mut at = 0;
    while at < special.len() + breaks.len() {
        let byte = if at < special.len() {
            special[at]
        } else {
            breaks[at - special.len()]
        };
        table[byte as usize] = false;
        at += 1;
    }
    table
}

/// What is nothing but itself in a line, in a plain scalar, in a quoted one.
const IN_LINE: [bool; 256] = all_but(b"");
const IN_PLAIN: [bool; 256] = all_but(b" \t:,?[]{}");
const IN_QUOTED: [bool; 256] = all_but(b"\"'\\");

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

impl Input<'_> {
    /// The byte at `at`; NUL, which no document holds, behind the last one.
    pub(super) fn get(self, at: usize) -> Result<u8, Stop> {
        match self.bytes.get(at) {
            Some(byte) => Ok(*byte),
            None if self.last => Ok(0),
            None => Err(Stop::More),
        }
    }

    /// The length of the line break at `at`, 0 if there is none. NEL, LS and PS are line breaks to YAML 1.1, which is
    /// what Helm's library reads.
    pub(super) fn line_break(self, at: usize) -> Result<usize, Stop> {
        Ok(match self.get(at)? {
            b'\n' => 1,
            b'\r' if self.get(at + 1)? == b'\n' => 2,
            b'\r' => 1,
            0xc2 if self.get(at + 1)? == 0x85 => 2,
            0xe2 if self.get(at + 1)? == 0x80 && matches!(self.get(at + 2)?, 0xa8 | 0xa9) => 3,
            _ => 0,
        })
    }

    /// Whether a space, a line break or the end stands at `at`.
    pub(super) fn is_space(self, at: usize) -> Result<bool, Stop> {
        let byte = self.get(at)?;
        Ok(is_blank(byte) || byte == 0 || self.line_break(at)? > 0)
    }

    pub(super) fn skip_blanks(self, mut at: usize) -> Result<usize, Stop> {
        while is_blank(self.get(at)?) {
            at += 1;
        }
        Ok(at)
    }

    /// Skips bytes of a table.
    fn run(self, at: usize, table: &[bool; 256]) -> usize {
        let rest = self.bytes.get(at..).unwrap_or_default();
        let length = rest.iter().position(|byte| !table[usize::from(*byte)]);
        at + length.unwrap_or(rest.len())
    }

    /// How much of the line that `at` is in is there, and whether that is all of it.
    pub(super) fn rest_of_line(self, mut at: usize) -> (usize, bool) {
        loop {
            at = self.run(at, &IN_LINE);
            match (self.get(at), self.line_break(at)) {
                (Ok(0), _) | (_, Ok(1..)) => return (at, true),
                (Ok(_), Ok(0)) => at += 1,
                _ => return (at, false),
            }
        }
    }

    /// The end of the line that `at` is in.
    pub(super) fn line_end(self, at: usize) -> Result<usize, Stop> {
        let (end, whole) = self.rest_of_line(at);
        if whole { Ok(end) } else { Err(Stop::More) }
    }

    /// `---` or `...` at the start of a line.
    pub(super) fn is_marker(self, at: usize) -> Result<bool, Stop> {
        let first = self.get(at)?;
        Ok(matches!(first, b'-' | b'.')
            && self.get(at + 1)? == first
            && self.get(at + 2)? == first
            && self.is_space(at + 3)?)
    }

    /// Where a `:` stands that makes a key of what ends at `at`.
    pub(super) fn colon(self, at: usize, flow: bool) -> Result<Option<usize>, Stop> {
        let at = self.skip_blanks(at)?;
        Ok((self.get(at)? == b':' && (flow || self.is_space(at + 1)?)).then_some(at))
    }

    /// The name of an anchor or alias, from behind its `&` or `*`: where it ends.
    pub(super) fn name(self, start: usize) -> Result<usize, Stop> {
        let mut at = start;
        while matches!(self.get(at)?, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'-') {
            at += 1;
        }
        let ended = self.is_space(at)? || b"?:,]}%@`".contains(&self.get(at)?);
        if at == start || !ended {
            return Err(Stop::Wrong("an anchor or alias without a name"));
        }
        Ok(at)
    }

    /// A tag: where it ends.
    pub(super) fn tag(self, mut at: usize) -> Result<usize, Stop> {
        while !self.is_space(at)? {
            at += 1;
        }
        Ok(at)
    }

    /// A plain scalar: where it ends, and whether that is in another line. Outside flow style, lines from the column
    /// `indent` on continue it.
    pub(super) fn plain(self, start: usize, flow: bool, indent: i64) -> Result<(usize, bool), Stop> {
        let (mut at, mut end) = (start, start);
        let mut lines = false;
        // The column, once there was a line break.
        let mut column: Option<i64> = None;
        loop {
            if (column == Some(0) && self.is_marker(at)?) || self.get(at)? == b'#' {
                break;
            }
            let begin = at;
            loop {
                at = self.run(at, &IN_PLAIN);
                let ends = match self.get(at)? {
                    b':' => self.is_space(at + 1)?,
                    b',' | b'?' | b'[' | b']' | b'{' | b'}' => flow,
                    _ => self.is_space(at)?,
                };
                if ends {
                    break;
                }
                at += 1;
            }
            if at > begin {
                end = at;
                lines |= column.is_some();
            }
            let text_ends = at;
            column = None;
            loop {
                match (self.get(at)?, column) {
                    (b'\t', Some(column)) if column < indent => return Err(Stop::Wrong("a tab that indents")),
                    (b' ' | b'\t', _) => {
                        at += 1;
                        column = column.map(|column| column + 1);
                    }
                    _ => match self.line_break(at)? {
                        0 => break,
                        length => {
                            at += length;
                            column = Some(0);
                        }
                    },
                }
            }
            if at == text_ends || (!flow && column.is_some_and(|column| column < indent)) {
                break;
            }
        }
        Ok((end, lines))
    }

    /// A quoted scalar, from its opening quote on: where it ends, and whether that is in another line.
    pub(super) fn quoted(self, start: usize) -> Result<(usize, bool), Stop> {
        let quote = self.get(start)?;
        let mut at = start + 1;
        let mut lines = false;
        loop {
            at = self.run(at, &IN_QUOTED);
            match self.get(at)? {
                0 => return Err(Stop::Wrong("the document ends in the middle of a value")),
                b'\\' if quote == b'"' => {
                    at += 1;
                    if self.line_break(at)? == 0 {
                        at += 1;
                        continue;
                    }
                }
                byte if byte == quote => {
                    if quote == b'"' || self.get(at + 1)? != quote {
                        return Ok((at + 1, lines));
                    }
                    at += 2;
                    continue;
                }
                _ => {}
            }
            match self.line_break(at)? {
                0 => at += 1,
                length => {
                    at += length;
                    lines = true;
                    if self.is_marker(at)? {
                        return Err(Stop::Wrong("a document that ends in the middle of a value"));
                    }
                }
            }
        }
    }

    /// A block scalar, from its `|` or `>` on, in a collection in the column `parent`: where it ends, and its column.
    pub(super) fn block(self, start: usize, parent: i64) -> Result<(usize, usize), Stop> {
        let mut at = start + 1;
        let mut column = 0;
        let outer = usize::try_from(parent.max(0)).unwrap_or(0);
        let mut signed = false;
        loop {
            match self.get(at)? {
                b'+' | b'-' if !signed => signed = true,
                digit @ b'1'..=b'9' if column == 0 => column = outer + usize::from(digit - b'0'),
                _ => break,
            }
            at += 1;
        }
        at = self.skip_blanks(at)?;
        if self.get(at)? == b'#' {
            at = self.line_end(at)?;
        }
        if !self.is_space(at)? || is_blank(self.get(at)?) {
            return Err(Stop::Wrong("a block scalar whose first line has more than its header"));
        }
        let mut line = at + self.line_break(at)?;
        let least = usize::try_from(parent + 1).unwrap_or(0).max(1);
        loop {
            let (begin, text, spaces) = self.empty_lines(line, &mut column, least)?;
            if spaces != column || self.get(text)? == 0 {
                // Spaces before the end belong to nothing else.
                let end = if self.get(text)? == 0 { text } else { begin };
                return Ok((end, column));
            }
            let end = self.line_end(text)?;
            line = end + self.line_break(end)?;
        }
    }

    /// Skips empty lines: the start of the first other one, its text, and the spaces before it, no more than `column`
    /// of them, which is found by them if it is 0.
    fn empty_lines(self, mut at: usize, column: &mut usize, least: usize) -> Result<(usize, usize, usize), Stop> {
        let mut widest = 0;
        loop {
            let begin = at;
            while (*column == 0 || at - begin < *column) && self.get(at)? == b' ' {
                at += 1;
            }
            let spaces = at - begin;
            widest = widest.max(spaces);
            if (*column == 0 || spaces < *column) && self.get(at)? == b'\t' {
                return Err(Stop::Wrong("a tab that indents"));
            }
            match self.line_break(at)? {
                0 => {
                    if *column == 0 {
                        *column = widest.max(least);
                    }
                    return Ok((begin, at, spaces));
                }
                length => at += length,
            }
        }
    }
}
