//! Where a page of a listing ended, and the opaque text that a client brings back to go on from there.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

const VERSION: u8 = 1;
const CHECK_LENGTH: usize = 8;
/// Version, cut-off flag and time, row.
const FIXED_LENGTH: usize = 1 + 1 + 8 + 8 + 1;
/// Longest cursor that is looked at: no path comes near.
const MAX_TEXT: usize = 1 << 20;

/// What a listing is sorted by, of one row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SortValue {
    Number(i64),
    /// Compared by its bytes.
    Text(String),
}

/// A row's place in a listing: its sorted column, then its row number, which no two rows share. Going on *after* a
/// position, rather than at an offset, neither repeats nor skips a row when others come and go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub value: SortValue,
    pub row: i64,
}

/// Writes a cursor. `query` names filters and order: a cursor is good for the query that gave it only. `cutoff` is the
/// moment that `older_than` meant on the first page, so that all pages mean the same.
pub(super) fn encode(position: &Position, cutoff: Option<i64>, query: &[u8]) -> String {
    let mut bytes = vec![VERSION, u8::from(cutoff.is_some())];
    bytes.extend_from_slice(&cutoff.unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(&position.row.to_le_bytes());
    match &position.value {
        SortValue::Number(number) => {
            bytes.push(0);
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        SortValue::Text(text) => {
            bytes.push(1);
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    let check = check(&bytes, query);
    bytes.extend_from_slice(&check);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a cursor: `None` if it was not made by [`encode`] for the same query.
pub(super) fn decode(text: &str, query: &[u8]) -> Option<(Position, Option<i64>)> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (bytes, given) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_LENGTH)?)?;
    if given != check(bytes, query) {
        return None;
    }
    let (fixed, value) = bytes.split_at_checked(FIXED_LENGTH)?;
    let number = |from: usize| Some(i64::from_le_bytes(fixed.get(from..from + 8)?.try_into().ok()?));
    if fixed.first() != Some(&VERSION) {
        return None;
    }
    let cutoff = if fixed.get(1) == Some(&1) {
        Some(number(2)?)
    } else {
        None
    };
    let row = number(10)?;
    let value = match fixed.get(18)? {
        0 => SortValue::Number(i64::from_le_bytes(value.try_into().ok()?)),
        1 => SortValue::Text(String::from_utf8(value.to_vec()).ok()?),
        _ => return None,
    };
    Some((Position { value, row }, cutoff))
}

/// Not a signature: whoever may list may look anywhere in the list. It tells a cursor that was cut, edited or brought
/// to another query from a good one.
fn check(bytes: &[u8], query: &[u8]) -> [u8; CHECK_LENGTH] {
    let mut hash = Sha256::new();
    hash.update((query.len() as u64).to_le_bytes());
    hash.update(query);
    hash.update(bytes);
    let mut check = [0; CHECK_LENGTH];
    check.copy_from_slice(&hash.finalize()[..CHECK_LENGTH]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position() -> impl Strategy<Value = Position> {
        let value = prop_oneof![
            any::<i64>().prop_map(SortValue::Number),
            any::<String>().prop_map(SortValue::Text)
        ];
        (value, any::<i64>()).prop_map(|(value, row)| Position { value, row })
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back_as_it_was(at in position(), cutoff in any::<Option<i64>>(), query in any::<Vec<u8>>()) {
            let text = encode(&at, cutoff, &query);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(decode(&text, &query), Some((at, cutoff)));
            prop_assert_eq!(decode(&text, b"another query"), None);
        }

        #[test]
        fn an_edited_cursor_is_refused(at in position(), which in any::<prop::sample::Index>(), by in 1_u8..=255) {
            let mut bytes = URL_SAFE_NO_PAD.decode(encode(&at, None, b"q")).expect("our own");
            let which = which.index(bytes.len());
            bytes[which] ^= by;
            prop_assert_eq!(decode(&URL_SAFE_NO_PAD.encode(&bytes), b"q"), None);
            bytes[which] ^= by;
            bytes.truncate(which);
            prop_assert_eq!(decode(&URL_SAFE_NO_PAD.encode(&bytes), b"q"), None);
        }

        #[test]
        fn anything_may_be_given(text in any::<String>()) {
            prop_assert_eq!(decode(&text, b"q"), None);
        }
    }
}
