//! Orders: artifacts that somebody wants by the ecosystem's own name for them (an image, a list of requirements), read to what
//! is to be fetched of a remote. Nothing here fetches.

use std::fmt;

use serde_json::{Map, Value};

use crate::config::Remote;

/// Makes further steps of a document that was fetched.
///
/// # Errors
/// Why the document does not lead to what is wanted, for a person.
pub type Then = Box<dyn FnOnce(&[u8]) -> Result<Vec<Step>, String> + Send>;

/// Something to be fetched.
pub struct Step {
    /// Below the remote, as it stands in a URL, query included.
    pub path: String,
    /// `Accept` of the ecosystem's clients.
    pub accept: Option<&'static str>,
    /// What its content leads to; `None`: it is wanted for itself.
    pub then: Option<Then>,
    /// Why it is not fetched, though it is wanted.
    pub refused: Option<String>,
}

impl Step {
    /// A file.
    pub fn file(path: impl Into<String>) -> Step {
        Step {
            path: path.into(),
            accept: None,
            then: None,
            refused: None,
        }
    }

    /// Something that cannot be had from the remote, and why.
    pub fn refused(what: impl Into<String>, why: impl Into<String>) -> Step {
        Step {
            refused: Some(why.into()),
            ..Step::file(what)
        }
    }

    /// A document that names what is to be fetched next.
    pub fn document(
        path: impl Into<String>,
        accept: Option<&'static str>,
        then: impl FnOnce(&[u8]) -> Result<Vec<Step>, String> + Send + 'static,
    ) -> Step {
        Step {
            accept,
            then: Some(Box::new(then)),
            ..Step::file(path)
        }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let then = if self.then.is_some() { " …" } else { "" };
        let refused = self.refused.as_ref().map_or(String::new(), |why| format!(": {why}"));
        write!(f, "{}{then}{refused}", self.path)
    }
}

/// A way to name artifacts that an ecosystem has.
pub struct Term {
    /// The field that an order by this term has.
    pub field: Field,
    /// Those that it may have beside it.
    pub refined_by: &'static [Field],
    /// Reads an order to its first steps.
    pub read: fn(&Remote, &Given<'_>) -> Result<Vec<Step>, String>,
}

/// A field of an order: a member of an object in the API, a flag on the command line.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The name of the member.
    pub name: &'static str,
    /// The flag, without dashes.
    pub flag: &'static str,
    /// What the help calls its value.
    pub value: &'static str,
    /// What the help says of it.
    pub help: &'static str,
    pub holds: Holds,
}

/// What a [`Field`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A text.
    Text,
    /// Texts.
    Texts,
    /// The text of a file.
    File,
    /// An object, from a file in JSON.
    Json,
    /// `true`, or nothing.
    Yes,
}

/// The fields of one order, each of the type that its [`Field`] says.
pub struct Given<'a>(&'a Map<String, Value>);

impl<'a> Given<'a> {
    /// A text.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// Texts; none where the field is absent.
    pub fn texts(&self, name: &str) -> Vec<&'a str> {
        let texts = self.0.get(name).and_then(Value::as_array);
        texts.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// An object.
    pub fn object(&self, name: &str) -> Option<&'a Map<String, Value>> {
        self.0.get(name).and_then(Value::as_object)
    }

    /// Whether the field is there and true.
    pub fn is_set(&self, name: &str) -> bool {
        self.0.get(name) == Some(&Value::Bool(true))
    }
}

/// What every order has, and what one by path has.
const REMOTE: &str = "remote";
const PATH: &str = "path";

/// Reads an order for `remote`, whose package type knows `terms`.
///
/// # Errors
/// The field that is unknown, missing or wrong, or what the term's own reader says.
pub fn read(remote: &Remote, terms: &[Term], order: &Map<String, Value>) -> Result<Vec<Step>, String> {
    let is_given = |field: &Field| order.get(field.name).is_some_and(|value| !value.is_null());
    let named: Vec<&Term> = terms.iter().filter(|term| is_given(&term.field)).collect();
    let path = order.get(PATH).filter(|value| !value.is_null());
    let own: &[Field] = match (path, &named[..]) {
        (Some(_), []) => &[],
        (None, [term]) => term.refined_by,
        (None, []) => return Err(unknown(remote, terms, order)),
        _ => {
            let several = named.iter().map(|term| term.field.name).chain(path.map(|_| PATH));
            return Err(format!("give one of {}, not several", listed(several)));
        }
    };
    let main = named.first().map(|term| term.field);
    for (name, value) in order {
        if [REMOTE, PATH].contains(&name.as_str()) || value.is_null() {
            continue;
        }
        let field = main.iter().chain(own).find(|field| field.name == name);
        let field = field.ok_or_else(|| unknown(remote, terms, order))?;
        check(field, value)?;
    }
    match named.first() {
        Some(term) => (term.read)(remote, &Given(order)),
        None => {
            let path = path.and_then(Value::as_str).ok_or("`path` is not a string")?;
            let path = path.trim_start_matches('/');
            let is_named = !path.is_empty();
            is_named
                .then(|| vec![Step::file(escaped(path))])
                .ok_or_else(|| "`path` is empty".to_owned())
        }
    }
}

/// What is wrong with a field of this name that nobody reads, and which there are.
fn unknown(remote: &Remote, terms: &[Term], order: &Map<String, Value>) -> String {
    let known = |name: &str| {
        let of = |term: &Term| term.field.name == name && order.contains_key(name);
        [REMOTE, PATH].contains(&name) || terms.iter().any(of)
    };
    let given = terms.iter().find(|term| order.contains_key(term.field.name));
    let refines = |name: &str| given.is_some_and(|term| term.refined_by.iter().any(|field| field.name == name));
    let stranger = order.keys().find(|name| !known(name) && !refines(name));
    let there_are = terms.iter().map(|term| {
        let refined = term.refined_by.iter().map(|field| field.name);
        match term.refined_by.is_empty() {
            true => format!("`{}`", term.field.name),
            false => format!("`{}` (with {})", term.field.name, listed(refined)),
        }
    });
    let there_are: Vec<String> = std::iter::once("`path`".to_owned()).chain(there_are).collect();
    let package = remote.package.name;
    let there_are = there_are.join(", ");
    match stranger {
        Some(name) => {
            let name: String = name.chars().take(80).collect();
            format!("`{name}` is no field here; of a remote of package {package} artifacts are named by {there_are}")
        }
        None => format!("which artifact? Of a remote of package {package} they are named by {there_are}"),
    }
}

fn check(field: &Field, value: &Value) -> Result<(), String> {
    let (fits, wanted) = match field.holds {
        Holds::Text | Holds::File => (value.is_string(), "a string"),
        Holds::Texts => {
            let items = value.as_array();
            (
                items.is_some_and(|items| items.iter().all(Value::is_string)),
                "a list of strings",
            )
        }
        Holds::Json => (value.is_object(), "an object"),
        Holds::Yes => (value.is_boolean(), "true or false"),
    };
    fits.then_some(())
        .ok_or_else(|| format!("`{}` is not {wanted}", field.name))
}

fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A path as it may stand in a request: what cannot is percent-encoded, all else stays, percent signs too.
pub fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::formats::testing::remote;

    const TERMS: &[Term] = &[Term {
        field: Field {
            name: "thing",
            flag: "thing",
            value: "NAME",
            help: "",
            holds: Holds::Text,
        },
        refined_by: &[
            Field {
                name: "sizes",
                flag: "size",
                value: "SIZE",
                help: "",
                holds: Holds::Texts,
            },
            Field {
                name: "fast",
                flag: "fast",
                value: "",
                help: "",
                holds: Holds::Yes,
            },
        ],
        read: |_, given| {
            let sizes = given.texts("sizes").join("+");
            let fast = given.is_set("fast");
            Ok(vec![Step::file(format!(
                "{}/{sizes}/{fast}",
                given.text("thing").unwrap()
            ))])
        },
    }];

    fn steps(order: Value) -> Result<String, String> {
        let remote = remote("generic", "https://files.test/");
        let steps = read(&remote, TERMS, order.as_object().unwrap())?;
        Ok(format!("{steps:?}"))
    }

    #[test]
    fn an_order_is_by_path_or_by_a_term() {
        assert_eq!(
            steps(json!({"remote": "r", "path": "/a b/c?d#e"})).unwrap(),
            "[a%20b/c?d%23e]"
        );
        let order = json!({"remote": "r", "thing": "x", "sizes": ["1", "2"], "fast": true, "path": null});
        assert_eq!(steps(order).unwrap(), "[x/1+2/true]");
        assert_eq!(steps(json!({"thing": "x"})).unwrap(), "[x//false]");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (order, says) in [
            (json!({"remote": "r"}), "`path`, `thing` (with `sizes`, `fast`)"),
            (json!({"path": "a", "siez": 1}), "`siez` is no field here"),
            (json!({"path": "a", "sizes": ["1"]}), "`sizes` is no field here"),
            (json!({"thing": "a", "size": ["1"]}), "`size` is no field here"),
            (
                json!({"image": "a"}),
                "`image` is no field here; of a remote of package generic",
            ),
            (json!({"path": "a", "thing": "b"}), "give one of `thing`, `path`"),
            (json!({"path": ["a"]}), "`path` is not a string"),
            (json!({"path": "/"}), "`path` is empty"),
            (json!({"thing": 1}), "`thing` is not a string"),
            (json!({"thing": "a", "sizes": "1"}), "`sizes` is not a list of strings"),
            (json!({"thing": "a", "sizes": [1]}), "`sizes` is not a list of strings"),
            (json!({"thing": "a", "fast": "yes"}), "`fast` is not true or false"),
        ] {
            let error = steps(order.clone()).unwrap_err();
            assert!(error.contains(says), "{order}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_can_be_asked_for(path in any::<String>()) {
            let escaped = escaped(&path);
            prop_assert!(format!("/{escaped}").parse::<http::uri::PathAndQuery>().is_ok(), "{}", escaped);
        }
    }
}
