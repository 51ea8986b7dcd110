//! Requirements files (<https://pip.pypa.io/en/stable/reference/requirements-file-format/>): requirements as PEP 508 has them, by
//! name, with pip's options.

use std::collections::BTreeSet;

use super::{Project, project_name, specifiers};

/// Options that say how to install, or from which index: the remote is the index here.
const PASSED_OVER: [&str; 17] = [
    "-i",
    "--index-url",
    "--pypi-url",
    "--extra-index-url",
    "--no-index",
    "-f",
    "--find-links",
    "--no-binary",
    "--only-binary",
    "--prefer-binary",
    "--require-hashes",
    "--trusted-host",
    "--use-feature",
    "--use-pep517",
    "--process-dependency-links",
    "--always-unzip",
    "-Z",
];
/// Options that name another file.
const FILES: [&str; 6] = ["-r", "--requirement", "-c", "--constraint", "-e", "--editable"];

/// The projects of a list.
///
/// # Errors
/// The line that is none, and what to do.
pub(super) fn read(text: &str) -> Result<Vec<Project>, String> {
    let mut projects = Vec::new();
    let mut takes_pre = false;
    for (number, line) in logical_lines(text) {
        let wrong = |why: String| format!("`requirements`, line {number}: {why}");
        let line = without_comment(&line);
        if line.is_empty() {
            continue;
        }
        if line.starts_with('-') {
            let option = line.split([' ', '=', '\t']).next().unwrap_or_default();
            // `-rother.txt` is written too.
            let is = |name: &&&str| {
                option == **name || (name.len() == 2 && !option.starts_with("--") && option.starts_with(**name))
            };
            if FILES.iter().any(|name| is(&name)) {
                let why = format!("{option} names another file, which is not read here: put its lines in its place");
                return Err(wrong(why));
            }
            if option == "--pre" {
                takes_pre = true;
            } else if !PASSED_OVER.iter().any(|name| is(&name)) {
                return Err(wrong(format!("{option} is not known")));
            }
            continue;
        }
        projects.push(requirement(line).map_err(wrong)?);
    }
    for project in &mut projects {
        project.pre = takes_pre;
    }
    Ok(projects)
}

/// Lines that a backslash at the end joins, each with the number of its first, from 1.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (at, line) in text.lines().enumerate() {
        // A comment ends what goes on.
        let is_comment = line.trim_start().starts_with('#');
        let (part, more) = match line.strip_suffix('\\') {
            Some(part) if !is_comment => (part, true),
            _ => (line, false),
        };
        match lines.last_mut().filter(|_| goes_on) {
            Some((_, line)) => {
                line.push_str(if is_comment { " " } else { "" });
                line.push_str(part);
            }
            None => lines.push((at + 1, part.to_owned())),
        }
        goes_on = more;
    }
    lines
}

fn without_comment(line: &str) -> &str {
    let line = line.trim();
    let begins = |at: &usize| *at == 0 || line[..*at].ends_with(char::is_whitespace);
    let comment = line.match_indices('#').map(|(at, _)| at).find(begins);
    line[..comment.unwrap_or(line.len())].trim_end()
}

/// One requirement, with options behind it.
fn requirement(line: &str) -> Result<Project, String> {
    let options = line.match_indices("--").map(|(at, _)| at);
    let options = options
        .into_iter()
        .find(|at| line[..*at].ends_with(char::is_whitespace));
    let line = line[..options.unwrap_or(line.len())].trim();
    let end = line.find(|letter: char| !letter.is_ascii_alphanumeric() && !"-_.".contains(letter));
    let (name, rest) = line.split_at(end.unwrap_or(line.len()));
    let shown: String = line.chars().take(80).collect();
    // A version may stand behind a name without a space, and neither does a folder look like one.
    let is_elsewhere = rest.starts_with([':', '/', '\\', '+']) || line.starts_with(['.', '/']);
    if is_elsewhere || rest.trim_start().starts_with('@') || rest.contains("://") {
        return Err(format!(
            "{shown:?} is a URL or a file: only what an index has can be cached"
        ));
    }
    let unreadable = || format!("{shown:?} is no requirement: NAME, or NAME with versions, such as six==1.17.0");
    let name = project_name(name).ok_or_else(unreadable)?;
    let rest = rest.split(';').next().unwrap_or_default().trim();
    let rest = match rest.strip_prefix('[') {
        Some(extras) => extras.split_once(']').ok_or_else(unreadable)?.1.trim(),
        None => rest,
    };
    let bare = rest
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .unwrap_or(rest);
    if !bare.is_empty() && !bare.starts_with(['=', '<', '>', '!', '~']) {
        return Err(unreadable());
    }
    Ok(Project {
        name,
        versions: specifiers(bare)?,
        pre: false,
        files: BTreeSet::new(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Result<Vec<String>, String> {
        let projects = read(text)?.into_iter();
        Ok(projects
            .map(|project| format!("{}{}", project.name, project.versions))
            .collect())
    }

    #[test]
    fn requirements_are_read_as_pip_reads_them() {
        let text = "\u{feff}# made by pip-compile\n--index-url https://index.test/simple\n-i https://x.test\n--only-binary :all:\n\n\
            six == 1.17.0  # via x\nDemo.App[extra, other] >= 1.0, < 2 ; python_version < '3.12'\n\
            a_b==1.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n    # via six\nold(>=1.2)\nbare\n\
            c ; sys_platform == \"win32\"\nd===1.0\ne~=1.4.2 --config-settings=\"x=y\"\r\nf==1.0+local.1\n";
        assert_eq!(
            shown(text).unwrap(),
            [
                "six==1.17.0",
                "demo-app>=1.0, <2",
                "a-b==1.0",
                "old>=1.2",
                "bare",
                "c",
                "d===1.0",
                "e~=1.4.2",
                "f==1.0+local.1"
            ]
        );
        assert!(read("--pre\na").unwrap()[0].pre);
        assert_eq!(shown("").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_none_is_named_by_its_line() {
        for (text, says) in [
            ("six\n-r other.txt", "line 2: -r names another file"),
            ("-rother.txt", "names another file"),
            ("--constraint=c.txt", "--constraint names another file"),
            ("-e .", "-e names another file"),
            ("--unheard-of x", "--unheard-of is not known"),
            ("a @ https://x.test/a.whl", "is a URL or a file"),
            ("https://x.test/a.whl", "is a URL or a file"),
            ("git+https://x.test/a", "is a URL or a file"),
            ("./a.whl", "is a URL or a file"),
            ("a b", "is no requirement"),
            ("a==", "are no version specifiers"),
            ("a[b", "is no requirement"),
            ("=1.0", "is no requirement"),
            ("-", "- is not known"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            projects in prop::collection::vec(("[a-z][a-z0-9]{0,8}", 0_u64..9, 0_u64..9, any::<bool>(), any::<bool>()), 0..20)
        ) {
            let mut text = String::new();
            let mut expected = Vec::new();
            for (name, major, minor, comment, split) in projects {
                expected.push(format!("{name}=={major}.{minor}"));
                let between = if split { " \\\n   " } else { "" };
                let behind = if comment { "  # via other" } else { "" };
                text.push_str(&format!("{name}{between}=={major}.{minor}{behind}\n"));
            }
            prop_assert_eq!(shown(&text).unwrap(), expected);
        }

        #[test]
        fn nothing_panics(text in "[a-z0-9 =<>!~@;#\\[\\]()\\\\\n./:+\u{e9}-]{0,120}") {
            let _ = read(&text);
        }
    }
}
