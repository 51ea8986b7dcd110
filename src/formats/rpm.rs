//! RPM repositories as `createrepo_c` writes them and dnf (librepo) reads them: `repodata/repomd.xml` names the other
//! metadata files with their checksums. Those that carry the checksum in their name never change; those with a fixed
//! name (`primary.xml.gz`, `comps.xml`) change together with their `repomd.xml`. Nothing is rewritten: the set is signed.

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use super::{Asked, Asset, Binding, Class, Format, Member, Reading};
use crate::config::Package;

/// The format of `package: rpm`.
pub struct Rpm;

static PACKAGE: Package = Package::named("rpm");

impl Format for Rpm {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }

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
/// are left out, for they are no files of this repository. Nothing is fetched or expanded: only the entities that XML
/// predefines are resolved.
pub fn repomd_files(xml: &[u8]) -> Vec<RepoFile> {
    let xml = String::from_utf8_lossy(xml);
    let mut reader = Reader::from_str(&xml);
    let config = reader.config_mut();
    config.allow_dangling_amp = true;
    config.allow_unmatched_ends = true;
    config.check_end_names = false;
    config.expand_empty_elements = true;
    let mut files = Vec::new();
    let mut depth = 0_usize;
    let mut data: Option<Data> = None;
    let mut text = String::new();
    while files.len() < MAX_FILES
        && let Ok(event) = reader.read_event()
    {
        match event {
            Event::Start(tag) => {
                depth += 1;
                text.clear();
                match &mut data {
                    None if tag.local_name().as_ref() == "data" => data = Some(Data::new(depth, &tag)),
                    Some(data) if depth == data.depth + 1 => data.start(&tag),
                    _ => {}
                }
            }
            Event::Text(piece) => text.push_str(&piece),
            Event::CData(piece) => text.push_str(&piece),
            Event::End(tag) => {
                match &mut data {
                    Some(data) if depth == data.depth + 1 => data.end(tag.local_name().as_ref(), text.trim()),
                    Some(at) if depth == at.depth => {
                        files.extend(data.take().and_then(Data::into_file));
                    }
                    _ => {}
                }
                depth = depth.saturating_sub(1);
                text.clear();
            }
            Event::Eof => break,
            _ => {}
        }
    }
    files
}

/// The `<data>` element that is being read.
struct Data {
    /// How deep it stands.
    depth: usize,
    file: RepoFile,
    is_elsewhere: bool,
}

impl Data {
    fn new(depth: usize, tag: &BytesStart<'_>) -> Self {
        let file = RepoFile {
            kind: attribute(tag, "type").unwrap_or_default(),
            href: String::new(),
            checksum_type: String::new(),
            checksum: String::new(),
            size: None,
        };
        Data {
            depth,
            file,
            is_elsewhere: false,
        }
    }

    /// A child begins.
    fn start(&mut self, tag: &BytesStart<'_>) {
        match tag.local_name().as_ref() {
            "location" => {
                self.file.href = attribute(tag, "href").unwrap_or_default();
                self.is_elsewhere = attribute(tag, "base").is_some();
            }
            "checksum" => self.file.checksum_type = attribute(tag, "type").unwrap_or_default(),
            _ => {}
        }
    }

    /// The child `name` ends, with this text.
    fn end(&mut self, name: &str, text: &str) {
        match name {
            "checksum" => self.file.checksum = text.to_ascii_lowercase(),
            "size" => self.file.size = text.parse().ok(),
            _ => {}
        }
    }

    /// `None`: not a file of this repository.
    fn into_file(self) -> Option<RepoFile> {
        (!self.is_elsewhere && is_below(&self.file.href)).then_some(self.file)
    }
}

/// The value of the attribute with this local name, entities resolved; with one that is unknown, as written.
fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let mut attributes = tag.attributes();
    // Attributes that are written twice cost a comparison of all with all to find.
    let mut attributes = attributes.with_checks(false).flatten();
    let found = attributes.find(|attribute| attribute.key.local_name().as_ref() == name)?;
    let resolved = found.normalized_value(XmlVersion::Implicit1_0);
    Some(resolved.unwrap_or(found.value).into_owned())
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
