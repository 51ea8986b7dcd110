use std::collections::HashMap;

use proptest::prelude::*;
use saphyr_parser::{Event, Parser, ScalarStyle};

use super::tree::{DEAD, Level};
use super::*;
use crate::formats::json::Step;
use crate::formats::testing::{cut, cuts};

const URLS: Place = &[
    Step::Key("entries"),
    Step::Any,
    Step::Item,
    Step::Key("urls"),
    Step::Item,
];

/// What chosen scalars become in these tests: something that says exactly what was read.
fn mark(text: &str) -> String {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    // Some of them cannot stand unquoted.
    if hex.len().is_multiple_of(3) {
        format!("./{hex}")
    } else {
        format!("'{hex}\": #,]}}\\")
    }
}

fn run(pieces: &[&[u8]]) -> Result<String, IndexError> {
    let mut scanner = Scanner::new(URLS);
    let mut out = Vec::new();
    for piece in pieces {
        scanner.write(piece, &mut out, &mut |text| Some(mark(text)))?;
    }
    scanner.end(&mut out, &mut |text| Some(mark(text)))?;
    Ok(String::from_utf8(out).unwrap())
}

fn rewrite(document: &str) -> String {
    run(&[document.as_bytes()]).unwrap()
}

fn child_item(level: Level) -> Level {
    if URLS.get(level) == Some(&Step::Item) {
        level + 1
    } else {
        DEAD
    }
}

fn child_key(level: Level, key: &str) -> Level {
    match URLS.get(level) {
        Some(Step::Key(_) | Step::Any) if key == "<<" => level,
        Some(Step::Key(wanted)) if *wanted == key => level + 1,
        Some(Step::Any) => level + 1,
        _ => DEAD,
    }
}

/// A document as a parser that reads the whole of it sees it: everything but the chosen scalars, and those. `None` if it
/// is no YAML, or has what the scanner does not claim to follow.
fn read(document: &str) -> Option<(Vec<String>, Vec<String>)> {
    struct Open {
        map: bool,
        level: Level,
        /// The level of the value, once the key is read.
        value: Option<Level>,
    }
    let mut shape = Vec::new();
    let mut chosen = Vec::new();
    let mut stack: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, (Level, Option<String>)> = HashMap::new();
    for event in Parser::new_from_str(document) {
        let (event, _) = event.ok()?;
        // The level of the node that comes, and whether it is a key.
        let level = match stack.last() {
            None => 0,
            Some(open) if open.map => open.value.unwrap_or(DEAD),
            Some(open) => child_item(open.level),
        };
        let key = stack.last().is_some_and(|open| open.map && open.value.is_none());
        let mut text = None;
        let mut node = true;
        match event {
            Event::Scalar(value, style, anchor, tag) => {
                // The final line breaks of a block scalar are of no interest in a link.
                let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                let value = if block { value.trim_end_matches('\n') } else { &value };
                // Nothing at all is a null, which no one rewrites.
                let nothing = style == ScalarStyle::Plain && value.is_empty();
                if level == URLS.len() && !nothing {
                    chosen.push(value.to_string());
                    shape.push(format!("chosen {anchor} {tag:?}"));
                } else {
                    shape.push(format!("{value:?} {anchor} {tag:?}"));
                }
                if anchor > 0 {
                    anchors.insert(anchor, (level, Some(value.to_string())));
                }
                text = Some(value.to_string());
            }
            Event::Alias(id) => match anchors.get(&id)? {
                (_, Some(value)) if level == URLS.len() => {
                    chosen.push(value.clone());
                    shape.push(format!("chosen 0 {:?}", None::<()>));
                }
                (at, stands_for) if *at == level || level == DEAD => {
                    text = stands_for.clone();
                    shape.push(format!("alias {id}"));
                }
                _ => return None,
            },
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                let map = matches!(event, Event::MappingStart(..));
                // A pair among the links (`[a: b]`) is told from a link too late, and is none to anybody.
                if map && level == URLS.len() {
                    return None;
                }
                shape.push(format!("{map} {anchor}"));
                if anchor > 0 {
                    anchors.insert(anchor, (level, None));
                }
                stack.push(Open {
                    map,
                    level: if key { DEAD } else { level },
                    value: None,
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                stack.pop()?;
                shape.push("end".to_owned());
                node = stack.last().is_some();
            }
            Event::DocumentStart(_) => {
                anchors.clear();
                shape.push("document".to_owned());
                node = false;
            }
            _ => node = false,
        }
        if node && let Some(open) = stack.last_mut().filter(|open| open.map) {
            open.value = match open.value {
                None => Some(child_key(open.level, &text.unwrap_or_default())),
                Some(_) => None,
            };
        }
    }
    Some((shape, chosen))
}

/// The property: in a document that is YAML, exactly the chosen scalars change, to what they should.
fn check(document: &str, at: &[usize]) -> Result<bool, TestCaseError> {
    let Some((shape, chosen)) = read(document) else {
        let _ = run(&cut(document.as_bytes(), at));
        return Ok(false);
    };
    // Helm's library takes less.
    let Ok(out) = run(&cut(document.as_bytes(), at)) else {
        prop_assert!(run(&[document.as_bytes()]).is_err());
        return Ok(false);
    };
    prop_assert_eq!(&out, &rewrite(document), "pieces of {}", document);
    let (new_shape, new_chosen) =
        read(&out).ok_or_else(|| TestCaseError::fail(format!("no YAML any more:\n{document}\n=>\n{out}")))?;
    let expected: Vec<String> = chosen.iter().map(|text| mark(text)).collect();
    prop_assert_eq!(new_chosen, expected, "\n{}\n=>\n{}", document, &out);
    prop_assert_eq!(new_shape, shape, "\n{}\n=>\n{}", document, &out);
    if chosen.is_empty() {
        prop_assert_eq!(&out, document);
    }
    Ok(true)
}

fn holds(document: &str) {
    assert!(
        check(document, &(0..4096).collect::<Vec<_>>()).unwrap(),
        "no YAML: {document}"
    );
}

/// Where `~` stands, the text changes.
fn changes(document: &str) {
    let original = document.replace('~', "");
    let mut expected = String::new();
    for (number, piece) in document.split('~').enumerate() {
        if number % 2 == 0 {
            expected.push_str(piece);
        } else {
            let quote = piece.chars().next().filter(|first| matches!(first, '"' | '\''));
            let text = quote.map_or(piece, |quote| piece.trim_matches(quote));
            let mut scalar = Vec::new();
            write_scalar(&mark(text), quote.map(|quote| quote as u8), &mut scalar);
            expected.push_str(std::str::from_utf8(&scalar).unwrap());
        }
    }
    assert_eq!(rewrite(&original), expected);
    holds(&original);
}

#[test]
fn an_index_as_helm_writes_it() {
    for indent in ["", "  ", "    "] {
        let document = format!(
            "apiVersion: v1
entries:
  alpine:
  - created: 2016-10-06T16:23:20.499814565-06:00
    description: Deploy a basic Alpine Linux pod
    digest: 99c76e403d752c84ead610644d4b1c2f2b453a74b921f422b9dcb8a7c8b559cd
    home: https://helm.example/helm
    name: alpine
    urls:
    {indent}- ~https://technosophos.example/tscharts/alpine-0.2.0.tgz~
    {indent}- ~\"https://two.example/a.tgz\"~   # second
    version: 0.2.0
  - urls: [~a.tgz~, ~'b.tgz'~ , ~\"c.tgz\"~]
    name: urls
  nginx: []
  broken:
  - urls:
  - urls: null
  - urls: https://kept.example/a.tgz
  - urls: {{a: https://kept.example/b.tgz}}
  - just text
  - - urls: [kept]
generated: 2016-10-06T16:23:20.499029981-06:00
urls:
- kept
"
        );
        changes(&document);
        changes(&document.replace('\n', "\r\n"));
        changes(&document.replace('\n', "\r"));
        changes(document.trim_end());
    }
}

#[test]
fn text_that_looks_like_urls_is_text() {
    changes(
        "# entries: {a: [{urls: [no]}]}
entries:
  a:
  - description: |
      urls:
      - no

        urls:
    urls:
    - ~yes~
    more: >2-
        urls: no
      - no
    plain: a
      b urls
      - no

      - no
    single: 'urls:
      - no '' urls:
      '
    double: \"\\
      urls:\\\"
      - no
      \"
    ? |
      urls:
    : - no
    ? urls
    : - ~yes~
    \"urls\": [~yes~]
    annotations:
      urls:
      - no
      list:
      - urls:
        - no
    url: [no]
    'urls' : # comment
    # comment
    - ~yes~
    -
      ~yes~
    -

      # comment
      ~yes~
",
    );
}

#[test]
fn scalars_of_every_style() {
    for scalar in [
        "https://h/a#b",
        "'it''s'",
        "\"\\x68\\u0074tp:\\/\\U0001F600\\t\"",
        "a\n      b\n\n      c",
        "'a\n      b\n\n      c'",
        "\"a\\\n      b \n      c\\n\n\n      d\"",
        "|\n      a",
        "|-\n      a\n\n",
        ">-\n      a\n      b",
        ">+\n      a\n\n",
        "|2\n      a",
        "!!str a",
        "&x a",
        "!t &x \"a\"",
        "&x\n      a",
        "\n      a",
        "- a",
        "[a]",
        "*missing",
        "''",
        "",
    ] {
        let document = format!("entries:\n  c:\n  - urls:\n    - {scalar}\n    - z\n    name: urls\n");
        if *scalar == *"*missing" {
            assert!(run(&[document.as_bytes()]).is_err());
        } else {
            holds(&document);
        }
    }
}

#[test]
fn flow_style_at_every_depth() {
    for document in [
        "entries: {c: [{urls: [~a~, ~b~], x: [no], 'urls' : [~c~]}, {y: {urls: [no]}}], d: []}\n",
        "{entries: {c: [{urls: [~a~]}]}}",
        "entries:\n  c: [\n    {urls: # x\n    [~a~, # y\n     ~b~\n  ,~\"c\"~], \"urls\":[~'d'~]}\n  ]\n  d: [{urls: [~https://h:1/a,~ b]}]\n".replace("~https://h:1/a,~ b", "~https://h:1/a~,~b~").as_str(),
        "entries:\n  c:\n  - {name: \"}\", urls: [~a~], v: ']'} # urls: [no]\n  - urls: [~x~]\n",
        "--- {entries: {c: [{urls: [~a~]}]}}\n--- # again\nentries:\n  c: [{urls: [~b~]}]\n...\n",
    ] {
        changes(document);
    }
    holds("entries: {c: [{urls: [a\n b, \"c\n d\", 'e\n\n f', [l]]}]}\n");
}

#[test]
fn anchors_and_aliases() {
    changes(
        "x: &u https://kept/\nentries:\n  c:\n  - urls: &l [~a~]\n  - urls: *l\n  - &v\n    urls:\n    - &w ~b~\n    - *w\n  - *v\n  - <<: *v\n    name: n\n",
    );
    let out = rewrite("x: &u https://h/\nentries:\n  c:\n  - urls: [*u, *u ]\n  - urls:\n    - *u\n    -  *u # c\n");
    let mut scalar = Vec::new();
    write_scalar(&mark("https://h/"), Some(b'"'), &mut scalar);
    let scalar = String::from_utf8(scalar).unwrap();
    assert_eq!(
        out,
        "x: &u https://h/\nentries:\n  c:\n  - urls: [*u, *u ]\n  - urls:\n    - *u\n    -  *u # c\n"
            .replace("*u", &scalar)
    );
    // As keys, whatever they stand for.
    changes("x: &k urls\ny: &e entries\n*e :\n  c:\n  - *k : [~a~]\n  - {*k : [~b~]}\n  - ? *k\n    : [~c~]\n");
    changes("&e entries:\n  &c c:\n  - &k urls: [~a~]\n    x: *k\n");
    for document in [
        "x: &l [a]\nentries: {c: [{urls: *l}]}",
        "x: &v {urls: [a]}\nentries: {c: [*v]}",
        "x: &v {urls: [a]}\nentries: {c: [{<<: *v}]}",
        "x: &v {urls: [a]}\nentries: {c: [{<<: [*v]}]}",
        "x: &c [{urls: [a]}]\nentries: {c: *c}",
        "x: &e {c: [{urls: [a]}]}\n<<: {entries: *e}",
        "entries: *e",
        "x: &k !!binary dXJscw==\nentries: {c: [{*k : [a]}]}",
        "? &k !!binary dXJscw==\n: x\nentries: {c: [{*k : [a]}]}",
        "*missing : {c: [{urls: [a]}]}",
    ] {
        assert!(run(&[document.as_bytes()]).is_err(), "{document}");
    }
}

#[test]
fn other_documents() {
    for document in [
        "",
        "\n",
        "# only a comment",
        "a",
        "- a\n- b\n",
        "---\n",
        "...\n",
        "%YAML 1.2\n---\na: b\n",
        "entries:",
        "entries: []\n",
    ] {
        assert_eq!(rewrite(document), document);
    }
    changes("%YAML 1.2\n---\nentries:\n  c:\n  - urls:\n    - ~a~\n---\nentries:\n  c:\n  - urls:\n    - ~b~\n");
    changes("entries:\n  c:\n    - urls:\n        - ~a~\n\n\n  d:\n    -   name: x\n        urls:\n        - ~b~\n");
    changes("generated: x\nentries:\n c:\n -\n   urls:\n   - ~a~");
    // A tab is space between tokens, never before them.
    changes("entries:\t\n  c:\n  -\turls:\t[\t~a~\t]\t\n");
}

#[test]
fn bounds() {
    let run = |document: &str| run(&document.as_bytes().chunks(1 << 16).collect::<Vec<_>>());
    let item = |text: &str| format!("entries: \n  c:\n  - urls:\n    - {text}\n");
    assert!(run(&item(&"x".repeat(MAX_LINK - 10))).is_ok());
    assert!(run(&item(&"x".repeat(MAX_LINK + 10))).is_err());
    assert!(run(&item(&"x\n      ".repeat(MAX_LINK))).is_err());
    assert!(run(&format!("a: \"{}\"\n", "x".repeat(MAX_SCALAR + (1 << 17)))).is_err());
    // A line has no bound, nor has a comment.
    let minified = format!(
        "---\n{{\"entries\":{{\"c\":[{}]}}}}",
        "{\"name\":\"c\",\"urls\":[\"aaa\"]},".repeat(MAX_SCALAR / 20)
    );
    assert_eq!(run(&minified).unwrap().matches(&mark("aaa")).count(), MAX_SCALAR / 20);
    let comment = format!("#{}\na: b\n", "x".repeat(MAX_SCALAR * 2));
    assert_eq!(run(&comment).unwrap(), comment);
    // Anchored text is forgotten when it is long.
    let long = format!("a: &x >\n{}b: c\n", "  some text\n".repeat(MAX_ANCHORED));
    assert_eq!(run(&long).unwrap(), long);
    assert!(run(&format!("{long}entries: {{c: [{{urls: [*x]}}]}}\n")).is_err());
    let deep = format!("a: {}\n", "[".repeat(10_001));
    assert!(run(&deep).is_err());
    for cut_short in ["a: [b", "a: 'b", "a: \"b\\\"", "a: {b: c"] {
        assert!(run(cut_short).is_err(), "{cut_short}");
    }
}

/// Takes decisions from bytes, so that documents shrink well.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from[usize::from(self.0.next().copied().unwrap_or(0)) % from.len()]
    }

    fn below(&mut self, bound: u8) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0) % bound)
    }

    /// A scalar that may be written after `parent` spaces of indentation.
    fn scalar(&mut self, deep: &str) -> String {
        let text = self.pick(&[
            "https://h/a.tgz",
            "urls",
            "urls:x",
            "a#b",
            "- x",
            "x: y",
            "é",
            "it's",
            "a, b",
            "[x]",
            "*a",
            "1.0",
            "a b",
        ]);
        match self.below(9) {
            0 => format!("'{}'", text.replace('\'', "''")),
            1 => format!("\"{text}\""),
            2 => format!("|{}\n{deep}{text}\n{deep}urls:\n\n", self.pick(&["", "-", "+"])),
            3 => format!(">-\n{deep}{text}\n{deep}- urls:"),
            4 => format!("\"{text}\n{deep}urls: \\\"\n\n{deep}- z\""),
            5 => format!("'urls:\n{deep}- {}'", text.replace('\'', "''")),
            6 => format!("plain\n{deep}urls\n{deep}- z"),
            7 => format!("&n{} x.tgz # c", self.below(3)),
            _ => self
                .pick(&["x.tgz", "https://h:8/a?b=c&d#e", "../a.tgz", "oci://h/c", "a/b:c"])
                .to_owned(),
        }
    }

    /// A key with any value.
    fn entry(&mut self, indent: &str) -> String {
        let deep = format!("{indent}   ");
        let comment = self.pick(&["", "", "\n", "  # urls:\n", "\n# urls: [x]\n"]);
        match self.below(8) {
            0 | 1 => {
                let key = self.pick(&[
                    "urls",
                    "'urls'",
                    "\"urls\"",
                    "urls ",
                    "\"ur\\x6cs\"",
                    "&k urls",
                    "? urls\n",
                ]);
                let key = if let Some(explicit) = key.strip_suffix('\n') {
                    format!("{explicit}\n{indent}")
                } else {
                    key.to_owned()
                };
                let dash = format!("{indent}{}", self.pick(&["", " ", "    "]));
                let items: String = (0..self.below(4))
                    .map(|_| {
                        format!(
                            "{dash}-{}{}\n{}",
                            self.pick(&[" ", "  ", " !!str ", " &i "]),
                            self.scalar(&format!("{dash}  ")),
                            self.pick(&["", "\n", "# c\n"])
                        )
                    })
                    .collect();
                if items.is_empty() {
                    format!("{key}: []\n")
                } else {
                    format!("{key}:{}\n{items}", self.pick(&["", " ", " # c", " &l"]))
                }
            }
            2 => format!(
                "urls: [{}]{comment}\n",
                self.pick(&["a.tgz", "'a', \"b\"", "a,\n  b ,", "https://h:8/a , b", "*a0", ""])
                    .replace('\n', &format!("\n{indent}"))
            ),
            3 => format!("x: {}\n", self.scalar(&deep)),
            4 => format!("m:\n{indent}  urls:\n{indent}  - {}\n", self.scalar(&deep)),
            5 => format!("l:\n{indent}- urls:\n{indent}  - {}\n", self.scalar(&deep)),
            6 => format!(
                "f: {{urls: [{}], 'x': {{}}}}{comment}\n",
                self.pick(&["a", "'b'", "\"c\""])
            ),
            _ => format!("n:\n{comment}"),
        }
    }

    fn document(&mut self) -> String {
        let mut out = self
            .pick(&["", "---\n", "# urls:\n", "x: &a0 https://h/x\n", "%YAML 1.2\n---\n"])
            .to_owned();
        for _ in 0..=self.below(2) {
            out.push_str(self.pick(&[
                "entries:\n",
                "'entries' :\n",
                "entries: # c\n",
                "other:\n",
                "entries: &e\n",
            ]));
            let indent = self.pick(&[" ", "  ", "    "]);
            for chart in 0..=self.below(3) {
                let dash = format!("{indent}{}", self.pick(&["", " ", "  "]));
                out.push_str(&format!(
                    "{indent}{}{chart}:\n",
                    self.pick(&["chart", "urls", "? "]).replace("? ", "x")
                ));
                for _ in 0..=self.below(3) {
                    let gap = self.pick(&[" ", "  ", "   "]);
                    let inside = format!("{dash} {gap}");
                    out.push_str(&format!("{dash}-{gap}"));
                    for number in 0..=self.below(5) {
                        if number > 0 {
                            out.push_str(&inside);
                        }
                        let entry = self.entry(&inside);
                        out.push_str(&entry);
                    }
                }
            }
        }
        if self.below(3) == 0 {
            out.replace('\n', "\r\n")
        } else {
            out
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_same_as_a_parser_that_reads_the_whole(choices in proptest::collection::vec(any::<u8>(), 0..120), at in cuts()) {
        let document = Choices(choices.iter()).document();
        check(&document, &at)?;
    }

    #[test]
    fn any_yaml_keeps_its_meaning(pieces in proptest::collection::vec(prop_oneof![
        4 => Just("\n"), 2 => Just("  "), 3 => Just("- "), 3 => Just("urls:"), 1 => Just("entries:\n"), 1 => Just("c:"), 1 => Just(" "),
        1 => Just("a"), 1 => Just("'"), 1 => Just("\""), 1 => Just("["), 1 => Just("]"), 1 => Just("{"), 1 => Just("}"), 1 => Just(", "),
        1 => Just(","), 1 => Just(": "), 1 => Just(":"), 1 => Just("#"), 1 => Just(" #"), 1 => Just("|\n"), 1 => Just(">-\n"), 1 => Just("? "),
        1 => Just("&a "), 1 => Just("*a"), 1 => Just("!!str "), 1 => Just("\\"), 1 => Just("---\n"), 1 => Just("\r"), 1 => Just("é"),
        1 => Just("<<: "), 1 => Just("-"),
    ], 0..24), prefix in 0..3_usize, at in cuts()) {
        let prefix = ["", "entries:\n  c:\n  - urls:\n    - ", "entries:\n  c:\n  - urls: ["][prefix];
        let text = pieces.concat();
        let document = format!("{prefix}{text}");
        check(&document, &at)?;
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(prop_oneof![
        any::<u8>(), proptest::sample::select(b"\n\r -:?#&*!|>'\"[]{},\\\t%@`.au".to_vec())
    ], 0..200), start: bool, at in cuts()) {
        let bytes = if start { [b"entries:\n  c:\n  - urls:\n    - ".as_slice(), &bytes].concat() } else { bytes };
        let go = |pieces: &[&[u8]]| {
            let mut scanner = Scanner::new(URLS);
            let mut out = Vec::new();
            for piece in pieces {
                scanner.write(piece, &mut out, &mut |text| Some(mark(text))).ok()?;
            }
            scanner.end(&mut out, &mut |text| Some(mark(text))).ok()?;
            Some(out)
        };
        prop_assert_eq!(go(&cut(&bytes, &at)), go(&[&bytes]));
    }
}
