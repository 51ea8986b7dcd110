//! Charts by name and version: the archive that `helm pull` gets.

use semver::{Comparator, Op, Version, VersionReq};
use url::Url;

use super::dated;
use crate::formats::order::{Field, Holds, Step, Term};

/// `chart: nginx`, and which version.
pub(super) const CHART: Term = Term {
    field: Field {
        name: "chart",
        flag: "chart",
        value: "NAME",
        help: "A chart, by its name in the repository",
        holds: Holds::Text,
    },
    refined_by: &[
        Field {
            name: "version",
            flag: "version",
            value: "VERSION",
            help: "Of a chart, this version, or the newest that this range allows (default: the newest)",
            holds: Holds::Text,
        },
        Field {
            name: "provenance",
            flag: "provenance",
            value: "",
            help: "Of a chart, the provenance file too",
            holds: Holds::Yes,
        },
    ],
    read: |_, given| {
        let name = given.text("chart").unwrap_or_default().to_owned();
        let version = given.text("version").unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err("`chart` is empty".to_owned());
        }
        let wanted = Wanted::read(&version)?;
        let with_provenance = given.is_set("provenance");
        let step = Step::document("index.yaml", None, move |index| {
            let path = find(index, &name, &wanted)?;
            let provenance = with_provenance.then(|| Step::file(format!("{path}.prov")));
            Ok(std::iter::once(Step::file(path.as_str())).chain(provenance).collect())
        });
        Ok(vec![step])
    },
};

/// Which versions are wanted.
#[derive(Debug)]
struct Wanted {
    /// The text as written: a version that is spelled so is the one.
    text: String,
    /// Any of these ranges.
    ranges: Vec<Range>,
}

#[derive(Debug)]
struct Range {
    all: VersionReq,
    none: Vec<Comparator>,
}

impl Wanted {
    /// Reads a range as Helm does (Masterminds' semver): `||` between ranges, commas or spaces between conditions, `1.2` and
    /// `1.2.x` for all that begin so, `1.2 - 2.3`. Nothing at all is the newest.
    fn read(text: &str) -> Result<Wanted, String> {
        let wrong = || format!("`version` {text:?} is neither a version nor a range");
        let ranges = text.split("||").map(|range| Range::read(range).ok_or_else(wrong));
        Ok(Wanted {
            text: text.trim().to_owned(),
            ranges: ranges.collect::<Result<_, _>>()?,
        })
    }

    fn allows(&self, version: &Version) -> bool {
        self.ranges.iter().any(|range| {
            let has_not = |not: &Comparator| !VersionReq::from_iter([not.clone()]).matches(version);
            let is_plain = range.all.comparators.is_empty() && version.pre.is_empty();
            (is_plain || (!range.all.comparators.is_empty() && range.all.matches(version)))
                && range.none.iter().all(has_not)
        })
    }
}

impl Range {
    fn read(text: &str) -> Option<Range> {
        if let Some((from, to)) = text.split_once(" - ") {
            let all = [comparator(Op::GreaterEq, from)??, comparator(Op::LessEq, to)??];
            return Some(Range {
                all: all.into_iter().collect(),
                none: Vec::new(),
            });
        }
        let (mut all, mut none) = (Vec::new(), Vec::new());
        let mut words = text.split([',', ' ']).filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            let end = word
                .find(|letter: char| !"=<>!~^".contains(letter))
                .unwrap_or(word.len());
            let (operator, number) = word.split_at(end);
            // A space may stand behind the operator.
            let number = if number.is_empty() { words.next()? } else { number };
            let op = match operator {
                "" | "=" => Op::Exact,
                "!=" => Op::Exact,
                ">" => Op::Greater,
                "<" => Op::Less,
                ">=" | "=>" => Op::GreaterEq,
                "<=" | "=<" => Op::LessEq,
                "~" | "~>" => Op::Tilde,
                "^" => Op::Caret,
                _ => return None,
            };
            match (operator, comparator(op, number)?) {
                ("!=", Some(not)) => none.push(not),
                (_, Some(condition)) => all.push(condition),
                (_, None) => {}
            }
        }
        Some(Range {
            all: all.into_iter().collect(),
            none,
        })
    }
}

/// A condition; the inner `None`: every version fits (`*`). `None`: it is none.
fn comparator(op: Op, number: &str) -> Option<Option<Comparator>> {
    let number = number.trim();
    let number = number.strip_prefix('v').unwrap_or(number);
    let number = number.split('+').next()?;
    let (release, pre) = number.split_once('-').unwrap_or((number, ""));
    let is_any = |part: &&str| !matches!(*part, "x" | "X" | "*");
    let parts: Vec<&str> = release.split('.').collect();
    let parts: Vec<u64> = parts
        .into_iter()
        .take_while(is_any)
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let Some((major, rest)) = parts.split_first() else {
        return Some(None);
    };
    (rest.len() <= 2).then_some(())?;
    Some(Some(Comparator {
        op,
        major: *major,
        minor: rest.first().copied(),
        patch: rest.get(1).copied(),
        pre: semver::Prerelease::new(pre).ok()?,
    }))
}

/// A version as Helm takes them: with a `v`, and with fewer parts.
fn lenient(text: &str) -> Option<Version> {
    let text = text.trim().strip_prefix('v').unwrap_or(text.trim());
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (release, rest) = text.split_at(end);
    let missing = 2_usize.checked_sub(release.matches('.').count())?;
    Version::parse(&format!("{release}{}{rest}", ".0".repeat(missing))).ok()
}

/// The path of the archive of the newest version that is wanted.
fn find(index: &[u8], name: &str, wanted: &Wanted) -> Result<String, String> {
    let versions = dated::versions(index, name).map_err(|error| error.to_string())?;
    if versions.is_empty() {
        return Err(format!("there is no chart {name:?} in this repository"));
    }
    let exact = versions.iter().find(|(version, _)| *version == wanted.text);
    let newest = || {
        let allowed = versions.iter().filter_map(|found| Some((lenient(&found.0)?, found)));
        let newest = allowed
            .filter(|(version, _)| wanted.allows(version))
            .max_by(|(a, _), (b, _)| a.cmp(b));
        newest.map(|(_, found)| found)
    };
    let (version, urls) = exact
        .or_else(newest)
        .ok_or_else(|| format!("no version of the chart {name} is {:?}", wanted.text))?;
    let url = urls
        .first()
        .ok_or_else(|| format!("the index names no file of {name} {version}"))?;
    let base = Url::parse("http://here.invalid/index.yaml").map_err(|error| error.to_string())?;
    let joined = base.join(url).ok().filter(|joined| joined.origin() == base.origin());
    let joined =
        joined.ok_or_else(|| format!("the index names a file of {name} {version} that is not below this remote"))?;
    Ok(joined[url::Position::BeforePath..url::Position::AfterQuery]
        .trim_start_matches('/')
        .to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INDEX: &str = "apiVersion: v1\nentries:\n  nginx:\n  - name: nginx\n    version: 1.2.3\n    urls: [nginx-1.2.3.tgz]\n  \
        - name: nginx\n    version: 2.0.0-rc.1\n    urls: [nginx-2.0.0-rc.1.tgz]\n  - name: nginx\n    version: v1.10.0\n    \
        urls:\n    - ./-/host/f.test/nginx-1.10.0.tgz\n  - name: nginx\n    version: '0.9'\n    urls: [old/nginx-0.9.tgz]\n  \
        empty:\n  - name: empty\n    version: 1.0.0\n";

    fn found(version: &str) -> Result<String, String> {
        let json: serde_json::Value = serde_json::json!({"entries": {"nginx": [
            {"name": "nginx", "version": "1.2.3", "urls": ["nginx-1.2.3.tgz"]},
            {"name": "nginx", "version": "2.0.0-rc.1", "urls": ["nginx-2.0.0-rc.1.tgz"]},
            {"name": "nginx", "version": "v1.10.0", "urls": ["./-/host/f.test/nginx-1.10.0.tgz"]},
            {"name": "nginx", "version": "0.9", "urls": ["old/nginx-0.9.tgz"]},
        ]}});
        let wanted = Wanted::read(version)?;
        let found = find(INDEX.as_bytes(), "nginx", &wanted);
        assert_eq!(found, find(json.to_string().as_bytes(), "nginx", &wanted));
        found
    }

    #[test]
    fn the_newest_version_that_is_allowed_is_found() {
        let newest = "-/host/f.test/nginx-1.10.0.tgz";
        for (version, path) in [
            ("", newest),
            ("*", newest),
            ("1.2.3", "nginx-1.2.3.tgz"),
            ("v1.2.3", "nginx-1.2.3.tgz"),
            ("v1.10.0", newest),
            ("1.10.0", newest),
            ("0.9", "old/nginx-0.9.tgz"),
            ("1", newest),
            ("1.2", "nginx-1.2.3.tgz"),
            ("1.2.x", "nginx-1.2.3.tgz"),
            ("~1.2", "nginx-1.2.3.tgz"),
            ("^1.2.0", newest),
            (">= 1.0, < 1.5", "nginx-1.2.3.tgz"),
            ("<1.5 !=1.2.3", "old/nginx-0.9.tgz"),
            ("0.1 - 1.2.9", "nginx-1.2.3.tgz"),
            ("9.x || 0.x", "old/nginx-0.9.tgz"),
            ("2.0.0-rc.1", "nginx-2.0.0-rc.1.tgz"),
            (">=2.0.0-rc.0", "nginx-2.0.0-rc.1.tgz"),
        ] {
            assert_eq!(found(version).as_deref(), Ok(path), "{version}");
        }
        for version in ["2", ">=2.0.0", "=1.2.4", "!=1.x, >=1, <1.99"] {
            assert!(
                found(version).unwrap_err().contains("no version of the chart nginx"),
                "{version}"
            );
        }
        for version in ["latest", "1.2.3.4", "=>", "<<1"] {
            assert!(Wanted::read(version).is_err(), "{version}");
        }
    }

    #[test]
    fn what_is_not_there_is_said() {
        let wanted = Wanted::read("").unwrap();
        let find = |name: &str| find(INDEX.as_bytes(), name, &wanted).unwrap_err();
        assert!(find("other").contains("there is no chart"));
        assert!(find("empty").contains("names no file"));
    }

    proptest! {
        #[test]
        fn nothing_panics(version in "[ 0-9.xX*v<>=!~^|,-]{0,20}", index in "[a-z: \\n\\[\\]{}\",-]{0,80}") {
            if let Ok(wanted) = Wanted::read(&version) {
                let _ = find(index.as_bytes(), "a", &wanted);
            }
        }
    }
}
