//! The flags for what ecosystems call their artifacts: one for each field that a package type knows ([`formats::order`]).
//!
//! [`formats::order`]: crate::formats::order

use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};
use serde_json::{Map, Value, json};

use super::text_of;
use crate::console::Stop;
use crate::formats;
use crate::formats::order::{Field, Holds};

/// What was given by such flags, in the order of [`formats::terms`].
pub(super) struct Orders {
    /// Flag and values.
    given: Vec<(&'static str, Vec<String>)>,
}

/// All fields, each flag once: terms may share what refines them.
fn fields() -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    let all = formats::terms().flat_map(|term| std::iter::once(&term.field).chain(term.refined_by));
    for field in all {
        if !fields.iter().any(|known| known.flag == field.flag) {
            fields.push(*field);
        }
    }
    fields
}

impl Args for Orders {
    fn augment_args(command: clap::Command) -> clap::Command {
        fields().into_iter().fold(command, |command, field| {
            let arg = Arg::new(field.flag).long(field.flag).help(field.help);
            let is_main = formats::terms().any(|term| term.field.flag == field.flag);
            let arg = match field.holds {
                Holds::Yes => arg.action(ArgAction::SetTrue),
                Holds::Text if !is_main => arg.value_name(field.value).action(ArgAction::Set),
                _ => arg.value_name(field.value).action(ArgAction::Append),
            };
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Orders {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = fields().into_iter().filter_map(|field| {
            let values: Vec<String> = match field.holds {
                Holds::Yes => matches
                    .get_flag(field.flag)
                    .then(|| "true".to_owned())
                    .into_iter()
                    .collect(),
                _ => matches.get_many(field.flag).into_iter().flatten().cloned().collect(),
            };
            (!values.is_empty()).then_some((field.flag, values))
        });
        Ok(Orders { given: given.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Orders {
    fn values(&self, field: &Field) -> &[String] {
        let given = self.given.iter().find(|(flag, _)| *flag == field.flag);
        given.map_or(&[], |(_, values)| values)
    }

    /// What was ordered of `remote`, as the API wants it. Files are read.
    ///
    /// # Errors
    /// There is no remote, a flag has nothing that it belongs to, or a file cannot be read.
    pub(super) fn read(&self, remote: Option<&str>) -> Result<Vec<Value>, Stop> {
        let ordered: Vec<_> = formats::terms()
            .filter(|term| !self.values(&term.field).is_empty())
            .collect();
        for (flag, _) in &self.given {
            let belongs = |term: &&&formats::order::Term| {
                term.field.flag == *flag || term.refined_by.iter().any(|field| field.flag == *flag)
            };
            if !ordered.iter().any(|term| belongs(&term)) {
                let of: Vec<String> = formats::terms()
                    .filter(|term| belongs(&term))
                    .map(|term| format!("--{}", term.field.flag))
                    .collect();
                return Err(Stop::Usage(format!("--{flag} goes with {}", of.join(" or "))));
            }
        }
        let mut orders = Vec::new();
        for term in ordered {
            let remote = remote.ok_or_else(|| {
                Stop::Usage(format!(
                    "--{} needs --remote, which says of which remote it is",
                    term.field.flag
                ))
            })?;
            let mut refined = Map::new();
            for field in term.refined_by {
                let values = self.values(field);
                if !values.is_empty() {
                    refined.insert(field.name.to_owned(), value(field, values)?);
                }
            }
            for one in self.values(&term.field) {
                let mut order = refined.clone();
                order.insert("remote".to_owned(), json!(remote));
                order.insert(
                    term.field.name.to_owned(),
                    value(&term.field, std::slice::from_ref(one))?,
                );
                orders.push(Value::Object(order));
            }
        }
        Ok(orders)
    }
}

/// What the API wants of a field.
fn value(field: &Field, values: &[String]) -> Result<Value, Stop> {
    let first = values.first().map(String::as_str).unwrap_or_default();
    Ok(match field.holds {
        Holds::Text => json!(first),
        Holds::Texts => json!(values),
        Holds::Yes => json!(true),
        Holds::File => json!(text_of(Path::new(first))?),
        Holds::Json => {
            let read = serde_json::from_str(&text_of(Path::new(first))?);
            read.map_err(|error| Stop::Failed(format!("{first} is no JSON: {error}")))?
        }
    })
}
