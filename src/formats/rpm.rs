//! RPM repositories as `createrepo_c` writes them and dnf (librepo) reads them: `repodata/repomd.xml` names the other
//! metadata files with their checksums. Those that carry the checksum in their name never change; those with a fixed
//! name (`primary.xml.gz`, `comps.xml`) change together with their `repomd.xml`. Nothing is rewritten: the set is signed.

use super::{Asked, Asset, Binding, Class, Format, Member, Reading};

/// The format of `package: rpm`.
pub struct Rpm;

impl Format for Rpm {
    fn read(&self, asked: Asked<'_>) -> Reading {
        let mut asset = Asset::new(asked.remote, asked.path, |path| path);
        asset.nature = nature(&asset.governing);
        asset.binding = binding(&asset.path.decoded);
        if asset.path.decoded.ends_with(".drpm") {
            asset.media_type = "application/x-rpm";
        }
        Reading::Artifact(Box::new(asset))
    }
}

fn nature(path: &str) -> Option<Class> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let in_repodata = folder == "repodata" || folder.ends_with("/repodata") || path.contains("/repodata/");
    let in_repodata = in_repodata || path.starts_with("repodata/");
    if in_repodata && named_by_checksum(name) {
        return Some(Class::Immutable);
    }
    // A package is no metadata, wherever someone puts it.
    let package = name.ends_with(".rpm") || name.ends_with(".drpm");
    let mutable = path.ends_with("repomd.xml") || path.ends_with("Packages.gz") || (in_repodata && !package);
    mutable.then_some(Class::Mutable)
}

fn binding(path: &str) -> Binding {
    let Some((folder, name)) = path.rsplit_once('/') else {
        return Binding::Alone;
    };
    if folder != "repodata" && !folder.ends_with("/repodata") {
        return Binding::Alone;
    }
    match name {
        "repomd.xml" => Binding::Manifest(members),
        name if named_by_checksum(name) => Binding::Alone,
        _ => Binding::Member(vec![format!("{folder}/repomd.xml")]),
    }
}

fn members(manifest: &str, body: &[u8]) -> Vec<Member> {
    let Some(root) = manifest.strip_suffix("repodata/repomd.xml") else {
        return Vec::new();
    };
    repomd_files(body)
        .into_iter()
        .filter(|file| !file.unique_name())
        .map(|file| Member {
            path: format!("{root}{}", file.href),
            is_read_with_it: !file.is_file_list(),
            checksum_type: file.checksum_type,
            checksum: file.checksum,
        })
        .collect()
}

/// `[0-9a-f]{32,128}-…`: the checksum that `createrepo_c --unique-md-filenames` puts in front.
fn named_by_checksum(name: &str) -> bool {
    let digits = name
        .bytes()
        .take_while(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        .count();
    (32..=128).contains(&digits) && name.as_bytes().get(digits) == Some(&b'-') && name.len() > digits + 1
}

/// One metadata file that a `repomd.xml` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoFile {
    /// `primary`, `filelists`, `group` …
    pub kind: String,
    /// Relative to the repository, that is to the folder that holds `repodata/`; as written, entities resolved.
    pub href: String,
    /// `sha256`, `sha512`, `sha` …; empty where there is no checksum.
    pub checksum_type: String,
    /// Lower-case hexadecimal.
    pub checksum: String,
    /// In bytes, of the file as it is transferred.
    pub size: Option<u64>,
}

impl RepoFile {
    /// Whether the name changes when the content does, so that an older or newer copy can never be mistaken for it.
    pub fn unique_name(&self) -> bool {
        named_by_checksum(self.file_name())
    }

    /// Whether it names the files in each package: the largest of all, which clients fetch only where they need it.
    fn is_file_list(&self) -> bool {
        self.kind.starts_with("filelists") || self.file_name().starts_with("filelists")
    }

    fn file_name(&self) -> &str {
        self.href.rsplit('/').next().unwrap_or(&self.href)
    }
}

/// More than any repository has (some 20); a larger document is cut here.
const MAX_FILES: usize = 1024;

/// The metadata files that a `repomd.xml` names, in its order. What is not well-formed is skipped, never an error: the
/// checksums decide later whether a file is the right one. Files elsewhere (`xml:base`, an absolute or climbing `href`)
/// are left out, for they are no files of this repository.
pub fn repomd_files(xml: &[u8]) -> Vec<RepoFile> {
    let mut files = Vec::new();
    let mut depth = 0_usize;
    // The depth of the `<data>` that is open, and what was read of it.
    let mut data: Option<(usize, RepoFile, bool)> = None;
    let mut text: Option<Text> = None;
    for token in Tokens(xml) {
        match token {
            Token::Open {
                name,
                attributes,
                empty,
            } => {
                depth += 1;
                text = None;
                match (&mut data, name) {
                    (None, b"data") => {
                        let file = RepoFile {
                            kind: attribute(attributes, b"type").unwrap_or_default(),
                            href: String::new(),
                            checksum_type: String::new(),
                            checksum: String::new(),
                            size: None,
                        };
                        data = Some((depth, file, false));
                    }
                    (Some((at, file, elsewhere)), b"location") if depth == *at + 1 => {
                        file.href = attribute(attributes, b"href").unwrap_or_default();
                        *elsewhere = attribute(attributes, b"base").is_some();
                    }
                    (Some((at, file, _)), b"checksum") if depth == *at + 1 => {
                        file.checksum_type = attribute(attributes, b"type").unwrap_or_default();
                        text = Some(Text::Checksum);
                    }
                    (Some((at, ..)), b"size") if depth == *at + 1 => text = Some(Text::Size),
                    _ => {}
                }
                if empty {
                    close(&mut depth, &mut data, &mut files);
                    text = None;
                }
            }
            Token::Close => {
                text = None;
                close(&mut depth, &mut data, &mut files);
            }
            Token::Text(piece) => {
                let piece = String::from_utf8_lossy(piece);
                match (&mut data, text) {
                    (Some((_, file, _)), Some(Text::Checksum)) => file.checksum = piece.trim().to_ascii_lowercase(),
                    (Some((_, file, _)), Some(Text::Size)) => file.size = piece.trim().parse().ok(),
                    _ => {}
                }
            }
        }
        if files.len() == MAX_FILES {
            break;
        }
    }
    files
}

/// Which text of a `<data>` comes next.
#[derive(Clone, Copy)]
enum Text {
    Checksum,
    Size,
}

/// Leaves an element; the end of a `<data>` gives a file.
fn close(depth: &mut usize, data: &mut Option<(usize, RepoFile, bool)>, files: &mut Vec<RepoFile>) {
    if data.as_ref().is_some_and(|(at, ..)| at == depth)
        && let Some((_, file, elsewhere)) = data.take()
        && !elsewhere
        && is_below(&file.href)
    {
        files.push(file);
    }
    *depth = depth.saturating_sub(1);
}

/// Whether a reference names a file below the folder it is relative to.
fn is_below(href: &str) -> bool {
    let first = href.split('/').next().unwrap_or(href);
    !href.is_empty()
        && !first.is_empty()
        && !first.contains(':')
        && !href.contains(['?', '#', '\\', '\0'])
        && href.split('/').all(|segment| segment != ".." && segment != ".")
}

/// What a `repomd.xml` is made of. No external entity, no DTD: nothing is ever fetched or expanded.
enum Token<'a> {
    /// Without namespace prefix.
    Open {
        name: &'a [u8],
        attributes: &'a [u8],
        empty: bool,
    },
    Close,
    Text(&'a [u8]),
}

/// A scanner for the part of XML 1.0 that matters here: elements, attributes, text, CDATA; comments, processing
/// instructions and declarations are skipped. It ends where the document stops making sense.
struct Tokens<'a>(&'a [u8]);

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            if self.0.is_empty() {
                return None;
            }
            if self.0[0] != b'<' {
                let end = self.0.iter().position(|&byte| byte == b'<').unwrap_or(self.0.len());
                let (text, rest) = self.0.split_at(end);
                self.0 = rest;
                return Some(Token::Text(text));
            }
            if let Some(rest) = self.0.strip_prefix(b"<!--") {
                self.0 = after(rest, b"-->")?.1;
            } else if let Some(rest) = self.0.strip_prefix(b"<![CDATA[") {
                let (text, rest) = after(rest, b"]]>")?;
                self.0 = rest;
                return Some(Token::Text(text));
            } else if let Some(rest) = self.0.strip_prefix(b"<?") {
                self.0 = after(rest, b"?>")?.1;
            } else if let Some(rest) = self.0.strip_prefix(b"<!") {
                self.0 = after(rest, b">")?.1;
            } else if let Some(rest) = self.0.strip_prefix(b"</") {
                self.0 = after(rest, b">")?.1;
                return Some(Token::Close);
            } else {
                let end = tag_end(self.0)?;
                let inside = &self.0[1..end];
                self.0 = &self.0[end + 1..];
                let (inside, empty) = inside
                    .strip_suffix(b"/")
                    .map_or((inside, false), |inside| (inside, true));
                let length = inside.iter().take_while(|byte| !byte.is_ascii_whitespace()).count();
                let (name, attributes) = inside.split_at(length);
                return Some(Token::Open {
                    name: local(name),
                    attributes,
                    empty,
                });
            }
        }
    }
}

/// What stands before and after `mark`; `None` if it does not come.
fn after<'a>(input: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = input.windows(mark.len()).position(|window| window == mark)?;
    Some((&input[..at], &input[at + mark.len()..]))
}

/// Where the tag at the start of `input` ends; a `>` inside a quoted value does not end it.
fn tag_end(input: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, &byte) in input.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at),
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), _) if open == byte => quote = None,
            _ => {}
        }
    }
    None
}

/// A name without its namespace prefix.
fn local(name: &[u8]) -> &[u8] {
    name.iter()
        .rposition(|&byte| byte == b':')
        .map_or(name, |colon| &name[colon + 1..])
}

/// The value of the attribute with this local name.
fn attribute(mut attributes: &[u8], wanted: &[u8]) -> Option<String> {
    loop {
        attributes = attributes.trim_ascii_start();
        let equals = attributes.iter().position(|&byte| byte == b'=')?;
        let name = attributes[..equals].trim_ascii();
        let rest = attributes[equals + 1..].trim_ascii_start();
        let quote = *rest.first().filter(|byte| matches!(byte, b'"' | b'\''))?;
        let (value, rest) = after(&rest[1..], &[quote])?;
        if local(name) == wanted {
            return Some(unescape(&String::from_utf8_lossy(value)));
        }
        attributes = rest;
    }
}

/// Resolves the five predefined entities and character references; anything else stays as it is written.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.bytes().take(12).position(|byte| byte == b';');
        let known = end.and_then(|end| {
            let name = &rest[1..end];
            let found = match name {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "apos" => '\'',
                _ => {
                    let number = name.strip_prefix('#')?;
                    let code = match number.strip_prefix('x') {
                        Some(digits) => u32::from_str_radix(digits, 16),
                        None => number.parse(),
                    };
                    char::from_u32(code.ok()?)?
                }
            };
            Some((found, end))
        });
        match known {
            Some((found, end)) => {
                out.push(found);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn classes() {
        let immutable = [
            format!("9/BaseOS/x86_64/os/repodata/{SHA}-primary.xml.zst"),
            format!("repodata/{SHA}-filelists.sqlite.bz2"),
            format!("repodata/{}-comps.xml", &SHA[..32]),
        ];
        for path in immutable {
            assert_eq!(nature(&path), Some(Class::Immutable), "{path}");
        }
        let mutable = [
            "9/BaseOS/x86_64/os/repodata/repomd.xml",
            "repodata/repomd.xml.asc",
            "repodata/repomd.xml.key",
            "repodata/primary.xml.gz",
            "os/repodata/comps.xml",
            "somewhere/repomd.xml",
            "dists/stable/Packages.gz",
        ];
        for path in mutable {
            assert_eq!(nature(path), Some(Class::Mutable), "{path}");
        }
        let neither = [
            format!("os/{SHA}-primary.xml.zst"),
            "os/Packages/a-1-1.x86_64.rpm".to_owned(),
            "repodata/a-1-1.x86_64.rpm".to_owned(),
            "notrepodata/primary.xml.gz".to_owned(),
            "RPM-GPG-KEY".to_owned(),
        ];
        for path in neither {
            assert_eq!(nature(&path), None, "{path}");
        }
        // Too short, too long, upper case, nothing behind: a fixed name like any other.
        for name in [&SHA[..31], &SHA.repeat(3)[..129], &SHA.to_uppercase()] {
            assert_eq!(
                nature(&format!("repodata/{name}-primary.xml")),
                Some(Class::Mutable),
                "{name}"
            );
        }
        assert_eq!(nature(&format!("repodata/{SHA}-")), Some(Class::Mutable));
    }

    #[test]
    fn a_repomd_as_createrepo_writes_it() {
        let xml = format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.example/metadata/repo" xmlns:rpm="http://linux.duke.example/metadata/rpm">
  <revision>1700000000</revision>
  <!-- <data type="ghost"><location href="repodata/ghost.xml"/></data> -->
  <data type="primary">
    <checksum type="sha256">{SHA}</checksum>
    <open-checksum type="sha256">ffff</open-checksum>
    <location href="repodata/{SHA}-primary.xml.gz"/>
    <timestamp>1700000000</timestamp>
    <size>12345</size>
    <open-size>99999</open-size>
  </data>
  <data type="group"><checksum type='sha512'><![CDATA[ AB12 ]]></checksum>
    <location href='repodata/comps&amp;x&#x2e;xml' note="a > b"></location></data>
  <data type="far"><location xml:base="https://far.example/" href="repodata/far.xml"/><size>1</size></data>
  <data type="up"><location href="../up.xml"/></data>
  <data type="abs"><location href="https://far.example/abs.xml"/></data>
  <data type="none"/>
</repomd>"#
        );
        let files = repomd_files(xml.as_bytes());
        assert_eq!(
            files,
            [
                RepoFile {
                    kind: "primary".to_owned(),
                    href: format!("repodata/{SHA}-primary.xml.gz"),
                    checksum_type: "sha256".to_owned(),
                    checksum: SHA.to_owned(),
                    size: Some(12345),
                },
                RepoFile {
                    kind: "group".to_owned(),
                    href: "repodata/comps&x.xml".to_owned(),
                    checksum_type: "sha512".to_owned(),
                    checksum: "ab12".to_owned(),
                    size: None,
                },
            ]
        );
        assert!(files[0].unique_name());
        assert!(!files[1].unique_name());
    }

    #[test]
    fn all_but_the_lists_of_files_is_read_with_the_manifest() {
        let data = |kind: &str, name: &str| format!(r#"<data type="{kind}"><location href="repodata/{name}"/></data>"#);
        let xml = [
            data("primary", "primary.xml.gz"),
            data("filelists", "files.xml.gz"),
            data("filelists_db", "filelists.sqlite.bz2"),
            data("group", "comps.xml"),
            data("other", &format!("{SHA}-other.xml.gz")),
        ];
        let members = members(
            "os/repodata/repomd.xml",
            format!("<repomd>{}</repomd>", xml.concat()).as_bytes(),
        );
        let members = members
            .iter()
            .map(|member| (member.path.as_str(), member.is_read_with_it));
        assert_eq!(
            members.collect::<Vec<_>>(),
            [
                ("os/repodata/primary.xml.gz", true),
                ("os/repodata/files.xml.gz", false),
                ("os/repodata/filelists.sqlite.bz2", false),
                ("os/repodata/comps.xml", true),
            ]
        );
    }

    #[test]
    fn prefixed_elements_and_bounds() {
        let one = r#"<r:data><r:location href="repodata/a.xml"/></r:data>"#;
        let xml = format!("<r:repomd>{}</r:repomd>", one.repeat(MAX_FILES + 5));
        assert_eq!(repomd_files(xml.as_bytes()).len(), MAX_FILES);
        assert!(repomd_files(b"<html><body>no").is_empty());
        assert!(repomd_files(b"").is_empty());
    }

    proptest! {
        #[test]
        fn no_document_panics(xml in proptest::collection::vec(prop_oneof![
            Just("<data type=\"x\">"), Just("</data>"), Just("<location href=\"a/b\""), Just("/>"), Just(">"),
            Just("<checksum type='sha'>"), Just("</"), Just("<!--"), Just("-->"), Just("&#x;"), Just("\""), Just("é"),
            Just("<![CDATA["), Just("<?"), Just("="), Just(" href="), Just("<size>"), Just("7"),
        ], 0..60)) {
            let xml = xml.concat();
            for file in repomd_files(xml.as_bytes()) {
                prop_assert!(is_below(&file.href));
            }
        }

        #[test]
        fn no_bytes_panic(xml in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = repomd_files(&xml);
        }
    }
}
