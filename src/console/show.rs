//! Answers on a terminal: tables, and colours where they are wanted (`NO_COLOR`, no terminal: none).

use std::io::Write as _;

use clap::builder::styling::{AnsiColor, Style};
use serde_json::Value;

const HEAD: Style = Style::new().bold();
const WRONG: Style = AnsiColor::Red.on_default().bold();

/// Prints to standard output. Whoever has closed it wants no more.
pub(super) fn print(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Says something beside the answer.
pub(super) fn remark(text: &str) {
    let mut out = anstream::stderr().lock();
    let _ = writeln!(out, "artifactapi: {text}");
}

/// Says what went wrong.
pub(super) fn complain(text: &str) {
    let mut out = anstream::stderr().lock();
    let _ = writeln!(out, "{WRONG}artifactapi:{WRONG:#} {text}");
}

/// A word for something that went wrong.
pub(super) fn wrong(word: &str) -> String {
    format!("{WRONG}{word}{WRONG:#}")
}

/// A table of these members of each object of a list, below `title`; `None`: the list is empty.
pub(super) fn table(title: &str, list: &Value, columns: &[&str]) -> Option<String> {
    let list = list.as_array().filter(|list| !list.is_empty())?;
    let rows = list
        .iter()
        .map(|line| columns.iter().map(|column| cell(&line[*column])).collect());
    Some(format!("{title}{}", lines(columns, rows.collect())))
}

/// Rows below a head.
pub(super) fn lines(columns: &[&str], rows: Vec<Vec<String>>) -> String {
    let head: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
    let all = || std::iter::once(&head).chain(&rows);
    let width = |at: usize| all().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for (at, row) in all().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        match at {
            0 => text.push_str(&format!("{HEAD}{}{HEAD:#}", line.trim_end())),
            _ => text.push_str(line.trim_end()),
        }
        text.push('\n');
    }
    text
}

/// A value on one line, without anything that a terminal acts on.
pub(super) fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    };
    text.chars()
        .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
        .collect()
}

/// A number of bytes, in the unit that suits it.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    let mut rest = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if rest < 999.5 {
            break;
        }
        (rest, unit) = (rest / 1000.0, next);
    }
    match unit {
        "B" => format!("{count} B"),
        _ if rest < 9.95 => format!("{rest:.1} {unit}"),
        _ => format!("{rest:.0} {unit}"),
    }
}

/// Text as it is without colours.
#[cfg(test)]
pub(super) fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_a_column_for_each_member() {
        let list = json!([{"path": "a", "due": null}, {"path": "long\u{1b}[1m", "due": "2030"}]);
        let shown = table("", &list, &["path", "due"]).unwrap();
        assert_eq!(plain(&shown), "PATH      DUE\na         -\nlong\u{fffd}[1m  2030\n");
        assert!(shown.starts_with("\u{1b}[1mPATH"));
        assert_eq!(table("", &json!([]), &["path"]), None);
    }

    #[test]
    fn bytes_have_the_unit_that_suits_them() {
        for (count, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KB"),
            (9_960, "10 KB"),
            (12_345, "12 KB"),
            (999_600, "1.0 MB"),
            (5_000_000_000, "5.0 GB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(bytes(count), shown, "{count}");
        }
    }
}
