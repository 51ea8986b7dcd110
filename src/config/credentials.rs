//! The credentials of a remote: where its password comes from, and what contradicts that.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use super::context::Context;
use super::model::{Credentials, Password, PasswordCommand, Secret};
use super::problem::Fault;
use super::section::{Section, Text};

/// A password that a program wrote is asked for again after this: Google's tokens live for an hour, Amazon's for twelve.
const PASSWORD_TTL: Duration = Duration::from_secs(600);
const MAX_PASSWORD_FILE: u64 = 64 * 1024;

/// Reads the credentials of a remote, if it has any.
pub(super) fn credentials(section: &Section<'_>) -> Option<Credentials> {
    let cx = section.cx;
    let check = |key: &str, text: Text| {
        if text.value.is_empty() || text.value.contains(|c: char| c.is_control()) {
            cx.error(
                text.at,
                Fault::new(format!("`{key}` is empty or holds a control character")),
            );
        }
        text
    };
    let username = section.text("username").map(|text| check("username", text));
    if let Some(text) = username.as_ref().filter(|text| text.value.contains(':')) {
        let fault = Fault::new("`username` holds a colon, which Basic authentication cannot carry");
        cx.error(
            text.at,
            fault.hint("write the name and the password under their own keys"),
        );
    }
    let keys = ["password", "password_file", "password_command"];
    let mut given = keys.into_iter().filter_map(|key| section.entry(key));
    let password_key = given.next();
    for second in given {
        let first = password_key.map_or("", |entry| entry.key.as_str());
        let fault = Fault::new(format!("both `{first}` and `{}` are given", second.key));
        cx.error(second.at, fault.hint("remove one of them"));
    }
    let password = section.text("password").map(|text| check("password", text).value);
    let from_file = section
        .text("password_file")
        .and_then(|text| match password_file(cx, &text.value) {
            Ok(password) => Some(password),
            Err(fault) => {
                cx.error(text.at, fault.about(format_args!("`password_file` {:?}", text.source)));
                None
            }
        });
    let command = password_command(section);
    match (section.entry("username"), password_key) {
        (Some(username), None) => {
            let fault = Fault::new("`username` without `password`");
            cx.error(
                username.at,
                fault.hint("add `password: ${NAME}`, `password_file: PATH` or `password_command: [program, argument]`"),
            );
        }
        (None, Some(password)) => {
            let fault = Fault::new(format!("`{}` without `username`", password.key));
            cx.error(
                password.at,
                fault.hint("add `username`; a bearer token goes into `headers`"),
            );
        }
        _ => {}
    }
    let fixed = password.or(from_file).map(|text| Password::Fixed(Secret::new(text)));
    Some(Credentials {
        username: username?.value,
        password: fixed.or(command.map(Password::Command))?,
    })
}

/// A program that writes the password, for those that expire.
fn password_command(section: &Section<'_>) -> Option<PasswordCommand> {
    let ttl = section.timeout("password_command_ttl");
    let Some(entry) = section.entry("password_command") else {
        if let Some(entry) = section.entry("password_command_ttl") {
            let fault = Fault::new("`password_command_ttl` without `password_command`");
            section.cx.error(entry.at, fault.hint("remove it"));
        }
        return None;
    };
    let words = section.list("password_command", |word| match word.contains('\0') {
        true => Err(Fault::new("holds a NUL byte")),
        false => Ok(word.to_owned()),
    })?;
    let argv: Vec<String> = words.into_iter().map(|(_, word)| word).collect();
    if argv.first().is_none_or(String::is_empty) {
        let fault = Fault::new("`password_command` names no program");
        section
            .cx
            .error(entry.value.at, fault.hint("write a list: [program, argument, …]"));
        return None;
    }
    Some(PasswordCommand {
        argv,
        ttl: ttl.unwrap_or(PASSWORD_TTL),
    })
}

fn password_file(cx: Context<'_>, path: &str) -> Result<String, Fault> {
    let mut bytes = Vec::new();
    let file = File::open(cx.resolve(path)).and_then(|file| file.take(MAX_PASSWORD_FILE + 1).read_to_end(&mut bytes));
    file.map_err(|error| Fault::new(format!("cannot be read: {error}")).hint("the path is relative to this file"))?;
    if bytes.len() as u64 > MAX_PASSWORD_FILE {
        return Err(Fault::new("too large for a password"));
    }
    let text = String::from_utf8(bytes).map_err(|_| Fault::new("does not hold UTF-8"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() || text.contains(|c: char| c.is_control()) {
        return Err(Fault::new("is empty, or holds more than one line"));
    }
    Ok(text.to_owned())
}
