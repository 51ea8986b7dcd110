//! The rule of this folder: nothing outside of it names a package type. And what the README says of each.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// Where a word that is also the name of a package type stands outside of this folder: file, text, meaning.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("headers.rs", "| \"rpm\"", "a file name extension"),
    ("config/address.rs", "npm.example.com", "a host name, as an example"),
    ("bucket/metadata.rs", "\"docker-content-digest\"", "a header field"),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        match path.is_dir() {
            true if name == "tests" || name == "formats" => {}
            true => sources(&path, found),
            false if name == "tests.rs" => {}
            false => found.push(path),
        }
    }
}

/// The words of a file's code, in lower case: neither comments nor tests.
fn words(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut spaced = String::new();
    for line in code.lines() {
        let line = match line.trim_start().starts_with("//") {
            true => "",
            false => line.split(" // ").next().unwrap_or_default(),
        };
        // The variables that the compiler is given by Cargo.
        let line = line.replace("CARGO_PKG_", "");
        let mut before = ' ';
        for c in line.chars() {
            // `DockerImage` is two words, `PYPI_HOST` too.
            if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
                spaced.push(' ');
            }
            spaced.push(if c.is_ascii_alphanumeric() { c } else { ' ' });
            before = c;
        }
        spaced.push(' ');
    }
    spaced.split_whitespace().map(str::to_ascii_lowercase).collect()
}

#[test]
fn nothing_outside_of_this_folder_names_a_package_type() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "{files:?}");
    let mut named = Vec::new();
    for file in files {
        let mut text = fs::read_to_string(&file).unwrap();
        let file = file.strip_prefix(&root).unwrap().to_str().unwrap();
        for (_, exception, _) in EXCEPTIONS.iter().filter(|(at, ..)| *at == file) {
            assert!(text.contains(exception), "{exception} in {file}");
            text = text.replace(exception, "");
        }
        let words = words(&text);
        let names = packages().into_iter().map(|package| package.name);
        let found = names.filter(|name| words.iter().any(|word| word == name));
        named.extend(found.map(|name| format!("{file}: {name}")));
    }
    assert!(named.is_empty(), "{named:#?}");
}

#[test]
fn words_are_those_of_code() {
    let text = "//! docker\nfn a() { let DockerPart = PYPI_HOST; } // npm\n    /// helm\n env!(\"CARGO_PKG_VERSION\") \
                \"https://rpm.example\"\n#[cfg(test)]\nmod tests {\n generic\n}\n";
    let words = words(text);
    for (name, is_there) in [
        ("docker", true),
        ("pypi", true),
        ("npm", false),
        ("helm", false),
        ("cargo", false),
        ("rpm", true),
        ("generic", false),
    ] {
        assert_eq!(words.iter().any(|word| word == name), is_there, "{name} in {words:?}");
    }
}

#[test]
fn the_readme_says_what_each_package_type_has() {
    let readme = include_str!("../../README.md");
    let names: Vec<&str> = packages().iter().map(|package| package.name).collect();
    assert!(readme.contains(&format!("# {}\n", names.join(" "))), "{names:?}");
    for package in packages() {
        for key in package.keys {
            let has_it = |other: &&Package| other.keys.iter().any(|own| own.name == key.name);
            let all: Vec<&str> = packages().into_iter().filter(has_it).map(|other| other.name).collect();
            let begin = format!("    {}: {} ", key.name, key.example);
            let end = format!(" # {}: {}", all.join(", "), key.help);
            let mut lines = readme.lines();
            assert!(
                lines.any(|line| line.starts_with(&begin) && line.ends_with(&end)),
                "{begin}…{end}"
            );
        }
        if let Some(setting) = package.default_remote {
            let row = format!("| `{}` | `{}` | none |", setting.flag, setting.variable);
            assert!(readme.contains(&row), "{row}");
        }
    }
}
