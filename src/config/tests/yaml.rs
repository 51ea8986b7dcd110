//! The reading of YAML: places, escapes, bounds.

use std::time::Duration;

use super::*;

#[test]
fn escapes_that_yaml_knows_are_errors_in_patterns_only() {
    for escape in [
        "b",
        "t",
        "0",
        "a",
        "e",
        "v",
        "f",
        "n",
        "r",
        "x41",
        "u0041",
        "U00000041",
        "N",
        "_",
        "L",
        "P",
        " ",
        "\t",
    ] {
        let case = generic(&format!("immutable_patterns: [ok, \"a\\{escape}c\"]"));
        let problems = case.problems();
        assert_eq!(problems.len(), 1, "{escape}: {problems:#?}");
        assert!(
            problems[0].starts_with("remotes.yaml:4:32: error: remote \"x\": in a double-quoted"),
            "{problems:?}"
        );
        assert!(
            problems[0].ends_with(&format!("write 'a\\{escape}c' or \"a\\\\{escape}c\"")),
            "{problems:?}"
        );
        assert!(generic(&format!("description: \"a\\{escape}c\"")).problems().is_empty());
    }
    let fine = generic(r#"mutable_patterns: ["\\.a", "\"", "a\/b", 'a\bc', a\bd, "\\\\"]"#);
    assert!(fine.problems().is_empty());
    let remote = fine.remote("x");
    let patterns: Vec<&str> = remote.mutable_patterns.iter().map(Pattern::as_str).collect();
    assert_eq!(patterns, [r"\.a", "\"", "a/b", r"a\bc", r"a\bd", r"\\"]);
}

#[test]
fn unknown_escapes_are_read_as_meant_wherever_they_stand() {
    let case = generic(
        "description: \"\\d\\\\\\w \\x4 \\u12\" # \"\\q\"\nmutable_patterns:\n  - |-\n    \"\\d\n  - '\\d''\\w'\n  - it\"\\d\n\
         username: u\npassword: \"s\\.cret\"\nprotected: false",
    );
    let remote = case.remote("x");
    assert_eq!(remote.description, r"\d\\w \x4 \u12");
    let patterns: Vec<&str> = remote.mutable_patterns.iter().map(Pattern::as_str).collect();
    assert_eq!(patterns.len(), 3);
    assert_eq!(patterns[0], "\"\\d");
    assert_eq!(patterns[2], "it\"\\d");
    let problems = case.problems();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(
        problems[0].starts_with("remotes.yaml:4:19: warning: remote \"x\": \\d is no escape"),
        "{problems:?}"
    );
    assert!(
        problems[1].starts_with("remotes.yaml:11:17: warning: remote \"x\": \\. is"),
        "{problems:?}"
    );
    assert!(!problems[1].contains("cret"), "a secret is not repeated");
    // Lines in a folded string are counted.
    let folded = generic("description: \"one\n  two \\\n  th\\.ree\"\nbad: 1");
    finds(
        &folded,
        &[
            "remotes.yaml:6:9: warning:",
            "remotes.yaml:7:5: error: remote \"x\": unknown key `bad`",
        ],
    );
}

#[test]
fn yaml_trouble_has_a_place() {
    finds(&Case::new("remotes:\n  x: [1\n  y: 2\n"), &["remotes.yaml:3:"]);
    finds(
        &Case::new("remotes: {}\n---\nremotes: {}\n"),
        &["remotes.yaml:2:1: error: a second YAML document"],
    );
    finds(&Case::new("remotes: {}\n#\0\n"), &["remotes.yaml:2:2: error: a NUL"]);
    finds(&Case::new(""), &["remotes.yaml: error: the file is empty"]);
    finds(&Case::new("{}"), &["remotes.yaml:1:1: error: `remotes` is missing"]);
    finds(
        &Case::new("- a"),
        &["remotes.yaml:1:1: error: this must be a mapping, and is a list"],
    );
    finds(
        &Case::new("remotes: 5"),
        &["remotes.yaml:1:10: error: `remotes` must be a mapping, and is a single value"],
    );
    finds(
        &Case::new("remotes: {}\nremote: {}"),
        &["2:1: error: unknown key `remote`\n    hint: did you mean `remotes`?"],
    );
    finds(
        &generic("offline: true\noffline: false"),
        &["5:5: error: remote \"x\": `offline` stands here twice\n    hint: it stands first in line 4"],
    );
    finds(
        &generic("offline: !!python/none true"),
        &["4:14: error: remote \"x\": the tag"],
    );
    finds(
        &generic("? [a]\n: 1"),
        &["4:7: error: remote \"x\": a key must be a single value"],
    );
    let bytes = Case::new("");
    bytes.write("remotes.yaml", b"remotes:\n  \xff: {}\n");
    finds(&bytes, &["remotes.yaml: error: not valid UTF-8 in line 2"]);
    for fine in [
        "remotes:",
        "remotes: {}",
        "\u{feff}remotes: ~\r\n",
        "---\nremotes: {}\n...",
    ] {
        assert!(Case::new(fine).config().remotes.is_empty(), "{fine}");
    }
}

#[test]
fn anchors_and_merges_work_within_bounds() {
    let case = Case::new(
        "remotes:\n  a: &a\n    base_url: https://a.example\n    cache: &c {mutable_ttl: 5}\n  b:\n    <<: *a\n    \
         base_url: https://b.example\n  c: {<<: [*a, *c], cache: *c}\n",
    );
    finds(
        &case,
        &["remotes.yaml:4:16: error: remote \"c\": unknown key `mutable_ttl`"],
    );
    let case = Case::new(
        "remotes:\n  a: &a\n    base_url: https://a\n    cache: {mutable_ttl: 5}\n  b: {<<: *a, base_url: https://b}\n",
    );
    let remote = case.remote("b");
    assert_eq!(remote.ttl.mutable, Duration::from_secs(5));
    assert_eq!(remote.base_url.as_ref().map(|u| u.as_str()), Some("https://b/"));

    let mut laughs = String::from("a0: &a0 [x]\n");
    let mut merges = String::from("m0: &m0 {k0: x}\n");
    for i in 1..20_000 {
        let j = i - 1;
        laughs += &format!("a{i}: &a{i} [*a{j}, *a{j}, *a{j}, *a{j}]\n");
        merges += &format!("m{i}: &m{i} {{<<: *m{j}, k{i}: x}}\n");
    }
    finds(&Case::new(&laughs), &["error: nested more than 32 levels deep"]);
    finds(&Case::new(&merges), &["error: merge keys copy too much"]);
    finds(&Case::new(&"[".repeat(100_000)), &["remotes.yaml:1:"]);
    finds(&Case::new(&"- ".repeat(100_000)), &["remotes.yaml:1:"]);
    finds(&Case::new("remotes: &a {x: *a}"), &["1:17: error: an alias inside"]);
}
