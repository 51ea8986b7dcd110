//! What may be asked of a flush: the body of its request, read and checked.

use super::query::{Filter, QueryError, class, pattern, prefix};

/// What a flush does to what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlushMode {
    /// Free the space.
    #[default]
    Delete,
    /// Keep the bodies, as expired.
    Expire,
}

/// The body of `PUT /cache/flush`.
#[derive(Debug, Clone, Default)]
pub struct FlushRequest {
    pub filter: Filter,
    pub mode: FlushMode,
    pub dry_run: bool,
}

impl FlushRequest {
    /// The body that [`FlushRequest::parse`] reads it from again: for other nodes.
    pub fn to_json(&self) -> serde_json::Value {
        let mode = match self.mode {
            FlushMode::Delete => "delete",
            FlushMode::Expire => "expire",
        };
        serde_json::json!({
            "remote": self.filter.remote,
            "class": self.filter.class.map(super::Class::name),
            "prefix": self.filter.prefix,
            "pattern": self.filter.pattern.as_ref().map(ToString::to_string),
            "mode": mode,
            "dry_run": self.dry_run,
        })
    }

    /// Reads a body; none at all means everything.
    ///
    /// # Errors
    /// The field that is unknown or wrong. An empty text is an error too: it is a variable that a script forgot to set
    /// more often than it means everything.
    pub fn parse(body: &[u8]) -> Result<FlushRequest, QueryError> {
        use serde_json::Value;
        let mut flush = FlushRequest::default();
        if body.trim_ascii().is_empty() {
            return Ok(flush);
        }
        let value = serde_json::from_slice(body)
            .map_err(|error| QueryError::new(format!("the body is not valid JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(QueryError::new("the body is not a JSON object"));
        };
        let text = |name: &str, value: &Value| match value {
            Value::String(text) if text.is_empty() => Err(QueryError::new(format!(
                "`{name}` is empty: leave it out to mean everything"
            ))),
            Value::String(text) => Ok(text.clone()),
            other => Err(QueryError::bad(name, &other.to_string(), "is not a string")),
        };
        for (name, value) in fields {
            match name.as_str() {
                "remote" | "class" | "prefix" | "pattern" | "mode" | "dry_run" if value.is_null() => {}
                "remote" => flush.filter.remote = Some(text(&name, &value)?),
                "class" => flush.filter.class = Some(class(&name, &text(&name, &value)?)?),
                "prefix" => flush.filter.prefix = Some(prefix(&name, &text(&name, &value)?)?),
                "pattern" => flush.filter.pattern = Some(pattern(&name, &text(&name, &value)?)?),
                "mode" => {
                    flush.mode = match text(&name, &value)?.as_str() {
                        "delete" => FlushMode::Delete,
                        "expire" => FlushMode::Expire,
                        other => return Err(QueryError::bad(&name, other, "is neither `delete` nor `expire`")),
                    };
                }
                "dry_run" => {
                    flush.dry_run = value
                        .as_bool()
                        .ok_or_else(|| QueryError::bad(&name, &value.to_string(), "is neither true nor false"))?;
                }
                _ => {
                    return Err(QueryError::bad(
                        "body",
                        &name,
                        "is not a field; known are remote, class, prefix, pattern, mode, dry_run",
                    ));
                }
            }
        }
        Ok(flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Class;
    use proptest::prelude::*;

    #[test]
    fn flush_bodies() {
        for body in ["", " \n", "{}", r#"{"remote": null, "dry_run": null}"#] {
            let flush = FlushRequest::parse(body.as_bytes()).expect(body);
            assert!(flush.filter.covers("any", Class::Immutable, "path"));
            assert_eq!((flush.mode, flush.dry_run), (FlushMode::Delete, false));
        }
        let body =
            br#"{"remote":"npm","class":"mutable","prefix":"/@a/","pattern":"b$","mode":"expire","dry_run":true}"#;
        let flush = FlushRequest::parse(body).expect("a good body");
        assert!(flush.filter.covers("npm", Class::Mutable, "@a/b"));
        assert!(!flush.filter.covers("npm", Class::Mutable, "@a/c"));
        assert!(!flush.filter.covers("npm", Class::Immutable, "@a/b"));
        assert!(!flush.filter.covers("pypi", Class::Mutable, "@a/b"));
        assert_eq!((flush.mode, flush.dry_run), (FlushMode::Expire, true));
        let again = FlushRequest::parse(flush.to_json().to_string().as_bytes()).expect("its own form");
        assert_eq!(again.to_json(), flush.to_json());
        assert!(again.filter.covers("npm", Class::Mutable, "@a/b"));
        assert!(!again.filter.covers("npm", Class::Mutable, "@a/c"));
        assert!(!again.filter.covers("npm", Class::Immutable, "@a/b"));
        for (body, part) in [
            (
                r#"{"remotes": "a"}"#,
                r#""remotes" is not a field; known are remote, class"#,
            ),
            (r#"{"glob": "a"}"#, r#""glob" is not a field"#),
            (r#"{"remote": 1}"#, "`remote`: \"1\" is not a string"),
            (r#"{"remote": ""}"#, "`remote` is empty"),
            (r#"{"class": "all"}"#, "`class`: \"all\""),
            (r#"{"pattern": "a("}"#, "`pattern`: \"a(\" is not a pattern"),
            (r#"{"mode": "burn"}"#, "`mode`: \"burn\""),
            (r#"{"dry_run": "yes"}"#, "`dry_run`"),
            ("[]", "not a JSON object"),
            ("{", "not valid JSON"),
            ("\u{0}", "not valid JSON"),
        ] {
            let message = FlushRequest::parse(body.as_bytes()).expect_err(body).message;
            assert!(message.contains(part), "{body}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body in any::<Vec<u8>>(), text in any::<String>()) {
            let _ = FlushRequest::parse(&body);
            let _ = FlushRequest::parse(format!("{{\"pattern\": {text:?}}}").as_bytes());
        }
    }
}
