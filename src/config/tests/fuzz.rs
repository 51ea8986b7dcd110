//! Any text at all.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use crate::config::problem::Report;
use crate::config::{Environment, Flags, Timeouts, remotes, settings, yaml};
use crate::formats;

/// Texts made of what matters to YAML and to this loader.
fn yaml_like() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "remotes:",
        "\n",
        "\n  ",
        "\n    ",
        "\n      ",
        "- ",
        "x:",
        " ",
        "base_url: ",
        "https://a.b",
        "\"",
        "'",
        "\\",
        "[",
        "]",
        "{",
        "}",
        ",",
        ": ",
        "#",
        "&a ",
        "*a",
        "<<: ",
        "|",
        ">",
        "|-\n",
        "? ",
        "!!str ",
        "!",
        "%",
        "---",
        "...",
        "\t",
        "\r\n",
        "\\.",
        "\\x4",
        "\\u0041",
        "hosts: ",
        "cache: ",
        "headers: ",
        "immutable_patterns: ",
        "package: npm",
        "(",
        "$",
        "${",
        "~",
        "null",
        "true",
        "0",
        "-1",
        "5m",
        "é",
        "\u{feff}",
        "\u{f8ff}",
        "\u{85}",
        "\u{2028}",
        "@",
        "`",
        "type: local",
    ]);
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

fn survives(text: &str) {
    let env: Environment = [("A", "b")].into_iter().collect();
    let file = Path::new("remotes.yaml");
    let timeouts = Timeouts {
        connect: Duration::ZERO,
        first_byte: Duration::ZERO,
        idle: Duration::ZERO,
        least_rate: 0,
        rate_window: Duration::from_secs(1),
        whole: Duration::from_secs(1),
    };
    let report = Report::default();
    let packages = formats::packages();
    remotes::read(&packages, file, text, &env, timeouts, &report);
    settings::read(&packages, &Flags::default(), &env, Some((file, text)), &report);
    let lines = text.matches(['\n', '\r']).count() + 1;
    for problem in report.finish().0 {
        assert!(
            problem.line.is_none_or(|line| (1..=lines).contains(&line)),
            "{problem} in {text:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_loader_panic(text in "(?s).{0,200}") {
        survives(&text);
    }

    #[test]
    fn no_yaml_like_text_makes_the_loader_panic(text in yaml_like()) {
        survives(&text);
        survives(&format!("remotes:\n  x:\n    base_url: https://a.example\n    {text}\n"));
    }

    /// Whatever a pattern is, both recommended spellings are read as it.
    #[test]
    fn recommended_spellings_are_read_as_meant(pattern in "[ -~]{1,30}") {
        let spelling = yaml::Spelling::of(&pattern);
        for text in [spelling.single, spelling.double] {
            let document = yaml::parse(&text).map_err(|(_, fault)| TestCaseError::fail(fault.message))?;
            prop_assert!(document.notes.is_empty());
            match document.root.as_ref().map(|root| &root.content) {
                Some(yaml::Content::Scalar(scalar)) => prop_assert_eq!(&scalar.text, &pattern),
                _ => prop_assert!(false, "no scalar"),
            }
        }
    }

    /// What stands in double quotes with single backslashes is read as in single quotes, unless YAML knows the escape.
    #[test]
    fn single_backslashes_are_read_as_meant(pattern in r#"([a-z.*$^()|]|\\[.dwsSDWB$()\[\]+*?^|-]){1,30}"#) {
        let document = yaml::parse(&format!("\"{pattern}\"")).map_err(|(_, fault)| TestCaseError::fail(fault.message))?;
        match document.root.as_ref().map(|root| &root.content) {
            Some(yaml::Content::Scalar(scalar)) => prop_assert_eq!(&scalar.text, &pattern),
            _ => prop_assert!(false, "no scalar"),
        }
        prop_assert_eq!(document.notes.len(), usize::from(pattern.contains('\\')));
    }
}
