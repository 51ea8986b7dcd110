//! The text of scalars, read and written.

use std::iter::Peekable;
use std::str::Chars;

use crate::formats::json;

/// The text of a plain scalar.
pub(super) fn plain_text(raw: &[u8]) -> String {
    flow_text(raw, None)
}

/// The text of a quoted scalar, its quotes included in `raw`.
pub(super) fn quoted_text(raw: &[u8]) -> String {
    let inside = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    flow_text(inside, raw.first())
}

/// What is written, with one kind of those line breaks that are folded. The others (LS, PS) stay what they are.
fn lines(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw).replace("\r\n", "\n");
    text.replace(['\r', '\u{85}'], "\n")
}

fn is_break(letter: char) -> bool {
    matches!(letter, '\n' | '\u{2028}' | '\u{2029}')
}

/// The text of a plain or quoted scalar, between its quotes: escapes resolved, lines folded (YAML 1.2 section 7.3).
fn flow_text(raw: &[u8], quote: Option<&u8>) -> String {
    let text = lines(raw);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    // What folding may not trim.
    let mut solid = 0;
    while let Some(character) = rest.next() {
        match (character, quote) {
            (first, _) if is_break(first) => {
                out.truncate(out.trim_end_matches([' ', '\t']).len().max(solid));
                let empty = empty_lines(&mut rest);
                match (first, empty.as_str()) {
                    ('\n', "") => out.push(' '),
                    ('\n', _) => {}
                    _ => out.push(first),
                }
                out.push_str(&empty);
                solid = out.len();
            }
            ('\'', Some(b'\'')) => {
                rest.next_if_eq(&'\'');
                out.push('\'');
            }
            ('\\', Some(b'"')) => {
                // An escaped line break is nothing.
                match rest.next_if(|next| is_break(*next)) {
                    Some(_) => out.push_str(&empty_lines(&mut rest)),
                    None => out.extend(escape(&mut rest)),
                }
                solid = out.len();
            }
            (other, _) => out.push(other),
        }
    }
    out
}

/// The breaks of the lines that are empty, and whatever stands before the text of the next.
fn empty_lines(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut breaks = String::new();
    while let Some(white) = rest.next_if(|next| matches!(next, ' ' | '\t') || is_break(*next)) {
        breaks.extend(Some(white).filter(|white| is_break(*white)));
    }
    breaks
}

/// What follows a backslash (section 5.7).
fn escape(rest: &mut Peekable<Chars<'_>>) -> Option<char> {
    let escaped = rest.next()?;
    let digits = match escaped {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let mut code = hexadecimal(rest, digits);
        // Half a character, as JSON writes it.
        if escaped == 'u' && code.is_some_and(|code| (0xd800..0xdc00).contains(&code)) {
            let mut after = rest.clone();
            if after.next() == Some('\\')
                && after.next() == Some('u')
                && let (Some(high), Some(low @ 0xdc00..0xe000)) = (code, hexadecimal(&mut after, 4))
            {
                code = Some(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
                *rest = after;
            }
        }
        let character = code.and_then(char::from_u32);
        return Some(character.unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    Some(match escaped {
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

fn hexadecimal(rest: &mut Peekable<Chars<'_>>, digits: usize) -> Option<u32> {
    let code: String = (0..digits)
        .map_while(|_| rest.next_if(char::is_ascii_hexdigit))
        .collect();
    u32::from_str_radix(&code, 16).ok()
}

/// The text of a block scalar, its header included in `raw`, final line breaks excluded (section 8.1).
pub(super) fn block_text(raw: &[u8], indent: usize, folded: bool) -> String {
    let text = lines(raw);
    let lines = text
        .split(is_break)
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
pub(super) fn write_scalar(text: &str, quote: Option<u8>, out: &mut Vec<u8>) {
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
