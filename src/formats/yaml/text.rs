//! The small parts of YAML: words, quotes, comments, and the text of scalars.

use std::iter::Peekable;
use std::str::Chars;

use crate::formats::json;

pub fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

pub fn is_flow_indicator(byte: u8) -> bool {
    matches!(byte, b',' | b'[' | b']' | b'{' | b'}')
}

pub fn skip_white(line: &[u8], at: usize) -> usize {
    line.iter()
        .skip(at)
        .position(|byte| !is_white(*byte))
        .map_or(line.len(), |white| at + white)
}

/// `---` or `...`, which end every block style scalar and collection.
pub fn is_marker(line: &[u8]) -> bool {
    (line.starts_with(b"---") || line.starts_with(b"...")) && line.get(3).is_none_or(|byte| is_white(*byte))
}

/// Where a word (anchor, alias, tag) ends.
pub fn word_end(line: &[u8], at: usize) -> usize {
    let end = |byte: &u8| is_white(*byte) || is_flow_indicator(*byte);
    line.iter()
        .skip(at)
        .position(end)
        .map_or(line.len(), |length| at + length)
}

/// Skips tags and anchors, and gives the name of the anchor. A comment after them counts as the end.
pub fn properties(line: &[u8], mut at: usize) -> (usize, Option<String>) {
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
pub fn quote_end(line: &[u8], mut at: usize, quote: u8) -> Option<usize> {
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
pub fn plain_end(line: &[u8], at: usize) -> usize {
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
pub fn find_key(line: &[u8], at: usize) -> Option<(usize, usize)> {
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
                    b':' if spaced(colon) => {
                        let blanks = line[at..colon].iter().rev().take_while(|byte| is_white(**byte)).count();
                        return Some((colon - blanks, colon));
                    }
                    b'#' if colon > at && is_white(line[colon - 1]) => return None,
                    _ => colon += 1,
                }
            }
        }
    }
}

/// The text of a key as written.
pub fn key_text(raw: &[u8]) -> String {
    match raw.first() {
        Some(b'"' | b'\'') => flow_text(&raw[1..raw.len().max(2) - 1], raw.first()),
        _ => flow_text(raw, None),
    }
}

/// The text of a plain or quoted scalar, between its quotes: escapes resolved, lines folded (YAML 1.2 section 7.3).
pub fn flow_text(raw: &[u8], quote: Option<&u8>) -> String {
    let text = String::from_utf8_lossy(raw).replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    // What folding may not trim.
    let mut solid = 0;
    while let Some(character) = rest.next() {
        match (character, quote) {
            ('\n', _) => {
                out.truncate(out.trim_end_matches([' ', '\t']).len().max(solid));
                let mut breaks = 1;
                while let Some(white) = rest.next_if(|next| matches!(next, ' ' | '\t' | '\n')) {
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
                rest.next_if_eq(&'\'');
                out.push('\'');
            }
            ('\\', Some(b'"')) => {
                out.extend(escape(&mut rest));
                solid = out.len();
            }
            (other, _) => out.push(other),
        }
    }
    out
}

/// What follows a backslash (section 5.7); an escaped line break is nothing.
fn escape(rest: &mut Peekable<Chars<'_>>) -> Option<char> {
    let escaped = rest.next()?;
    let digits = match escaped {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let code: String = (0..digits)
            .map_while(|_| rest.next_if(char::is_ascii_hexdigit))
            .collect();
        let character = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
        return Some(character.unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    Some(match escaped {
        '\n' => {
            while rest.next_if(|next| matches!(next, ' ' | '\t')).is_some() {}
            return None;
        }
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

/// The text of a block scalar, its header included in `raw`, final line breaks excluded (section 8.1).
pub fn literal_text(raw: &[u8], indent: usize, folded: bool) -> String {
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
pub fn write_scalar(text: &str, quote: Option<u8>, out: &mut Vec<u8>) {
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
