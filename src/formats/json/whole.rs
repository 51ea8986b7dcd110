//! A document in JSON that is looked at as a whole, and written again with some of it left out. What stays is byte for byte what it
//! was.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::formats::IndexError;

/// The members of a JSON object in their order, values as they are written; a name may come twice.
#[derive(Debug, Default)]
pub(in crate::formats) struct JsonObject<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> JsonObject<'a> {
    /// Reads an object.
    ///
    /// # Errors
    /// `json` is no object.
    pub(in crate::formats) fn read(json: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// The value that clients see: the last of that name.
    pub(in crate::formats) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| *value)
    }

    /// Such a value, if it is a string.
    pub(in crate::formats) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        text(self.get(name)?)
    }

    /// Such a value, if it is an object.
    pub(in crate::formats) fn object(&self, name: &str) -> Option<JsonObject<'a>> {
        JsonObject::read(self.get(name)?.get()).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = JsonObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonObject<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(JsonObject(members))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// A string, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A JSON string.
pub(in crate::formats) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let Name(text) = serde_json::from_str(value.get()).ok()?;
    Some(text)
}

/// The items of a JSON array, as they are written.
pub(in crate::formats) fn items(value: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(value.get()).ok()
}

/// Writes a JSON object from members whose values are written already.
pub(in crate::formats) fn object<'m>(members: impl IntoIterator<Item = (&'m str, &'m str)>) -> String {
    let mut out = String::from("{");
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(name).to_string());
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    out
}

/// Writes a JSON array from items that are written already.
pub(in crate::formats) fn array<'m>(items: impl IntoIterator<Item = &'m str>) -> String {
    let items: Vec<&str> = items.into_iter().collect();
    format!("[{}]", items.join(","))
}

/// The text of a JSON document.
///
/// # Errors
/// The document is not in UTF-8.
pub(in crate::formats) fn json_text(document: &[u8]) -> Result<&str, IndexError> {
    let document = document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document);
    std::str::from_utf8(document).map_err(|error| IndexError(format!("upstream's index is not in UTF-8: {error}")))
}

/// Upstream's index is no JSON that clients could read.
pub(in crate::formats) fn no_json(error: &serde_json::Error) -> IndexError {
    IndexError(format!("upstream's index is no JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_spelling() {
        let json = r#"{"a": 1.0, "b\u0041": {"x" : [1, 2]}, "a":"\u00e9"}"#;
        let members = JsonObject::read(json).unwrap();
        assert_eq!(members.get("bA").unwrap().get(), r#"{"x" : [1, 2]}"#);
        assert_eq!(members.text("a").unwrap(), "é");
        let written = object(members.0.iter().map(|(name, value)| (&**name, value.get())));
        assert_eq!(written, r#"{"a":1.0,"bA":{"x" : [1, 2]},"a":"\u00e9"}"#);
        assert!(JsonObject::read("[]").is_err());
    }
}
