//! `repomd.xml`, read while it comes: the metadata files that it names, with their checksums.

use std::ops::ControlFlow;

use quick_xml::events::{BytesStart, Event};

use super::named_by_checksum;
use super::xml::{MAX_HELD, Xml, attribute, is_below};
use crate::formats::links::decode_once;
use crate::formats::release::{Release, TellingReader, Told};
use crate::formats::{Fact, IndexError, IndexReader, Member};

/// More than any repository has (some 20); a larger document is read to here.
const MAX_FILES: usize = 1024;
/// What packings of the list of packages are read.
const READ: [&str; 3] = [".xml", ".xml.gz", ".xml.zst"];

/// Reads a `repomd.xml` to the files of fixed names that it names.
pub(super) struct Repomd {
    /// What the paths of its repository begin with.
    root: String,
    files: Files,
    facts: Vec<Fact>,
}

impl Repomd {
    /// For the document under the decoded path `manifest`.
    pub(super) fn new(manifest: &str) -> Self {
        Repomd {
            root: root(manifest),
            files: Files::default(),
            facts: Vec::new(),
        }
    }
}

fn root(manifest: &str) -> String {
    manifest
        .strip_suffix("repodata/repomd.xml")
        .unwrap_or_default()
        .to_owned()
}

impl IndexReader for Repomd {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError> {
        out.extend_from_slice(chunk);
        let (root, facts) = (&self.root, &mut self.facts);
        self.files.write(chunk, &mut |file| facts.extend(member(root, file)));
        Ok(())
    }

    fn end(&mut self, _out: &mut Vec<u8>) -> Result<(), IndexError> {
        let (root, facts) = (&self.root, &mut self.facts);
        self.files.end(&mut |file| facts.extend(member(root, file)));
        Ok(())
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }

    fn escaped(&self) -> u64 {
        0
    }
}

/// Reads a `repomd.xml` to the files that it names by their checksums, and to the index that lists the packages.
pub(super) struct Listed {
    root: String,
    files: Files,
    /// Whether that index was told.
    has_packages: bool,
}

impl Listed {
    /// For the document under the decoded path `manifest`.
    pub(super) fn new(manifest: &str) -> Self {
        Listed {
            root: root(manifest),
            files: Files::default(),
            has_packages: false,
        }
    }

    fn tell(root: &str, has_packages: &mut bool, file: RepoFile, told: &mut Vec<Told>) {
        let path = format!("{root}{}", decode_once(&file.href));
        let is_read = READ.iter().any(|packing| file.file_name().ends_with(packing));
        if file.kind == "primary" && is_read && !*has_packages {
            *has_packages = true;
            told.push(Told::Index(path.clone()));
        }
        if file.unique_name() {
            told.push(Told::File(Release {
                file: path,
                published: None,
                digest: super::digest(&file.checksum_type, &file.checksum),
            }));
        }
    }
}

impl TellingReader for Listed {
    fn write(&mut self, piece: &[u8], told: &mut Vec<Told>) -> Result<(), IndexError> {
        let (root, has_packages) = (&self.root, &mut self.has_packages);
        self.files
            .write(piece, &mut |file| Listed::tell(root, has_packages, file, told));
        Ok(())
    }

    fn end(&mut self, told: &mut Vec<Told>) -> Result<(), IndexError> {
        let (root, has_packages) = (&self.root, &mut self.has_packages);
        self.files.end(&mut |file| Listed::tell(root, has_packages, file, told));
        Ok(())
    }
}

/// `None`: another file has another name.
fn member(root: &str, file: RepoFile) -> Option<Fact> {
    (!file.unique_name()).then(|| {
        Fact::Member(Member {
            path: format!("{root}{}", file.href),
            is_read_with_it: !file.is_file_list(),
            checksum_type: file.checksum_type,
            checksum: file.checksum,
        })
    })
}

/// One metadata file that a `repomd.xml` names.
#[derive(Debug, PartialEq, Eq)]
struct RepoFile {
    /// `primary`, `filelists`, `group` …
    kind: String,
    /// Relative to the repository, that is to the folder that holds `repodata/`; as written, entities resolved.
    href: String,
    /// `sha256`, `sha512`, `sha` …; empty where there is no checksum.
    checksum_type: String,
    /// Lower-case hexadecimal.
    checksum: String,
}

impl RepoFile {
    /// Whether the name changes when the content does, so that an older or newer copy can never be mistaken for it.
    fn unique_name(&self) -> bool {
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

/// The metadata files that a `repomd.xml` names, in its order. What is not well-formed ends it, and is never an error: the
/// checksums decide later whether a file is the right one. Files elsewhere (`xml:base`, an absolute or climbing `href`)
/// are left out, for they are no files of this repository. Nothing is fetched or expanded: only the entities that XML
/// predefines are resolved.
#[derive(Default)]
struct Files {
    xml: Xml,
    elements: Elements,
}

/// Where in the document it is read.
#[derive(Default)]
struct Elements {
    count: usize,
    /// Elements that are open.
    depth: usize,
    data: Option<Data>,
    /// Since the last tag.
    text: String,
}

impl Files {
    fn write(&mut self, chunk: &[u8], found: &mut dyn FnMut(RepoFile)) {
        let elements = &mut self.elements;
        self.xml.write(chunk, &mut |event| elements.read(event, found));
    }

    fn end(&mut self, found: &mut dyn FnMut(RepoFile)) {
        let elements = &mut self.elements;
        self.xml.end(&mut |event| elements.read(event, found));
    }
}

impl Elements {
    fn read(&mut self, event: Event<'_>, found: &mut dyn FnMut(RepoFile)) -> ControlFlow<()> {
        if let Some(file) = self.event(event) {
            found(file);
            self.count += 1;
        }
        match self.count == MAX_FILES || self.text.len() > MAX_HELD {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// The file whose element ends here.
    fn event(&mut self, event: Event<'_>) -> Option<RepoFile> {
        match event {
            Event::Start(tag) => {
                self.depth += 1;
                self.text.clear();
                match &mut self.data {
                    None if tag.local_name().as_ref() == "data" => self.data = Some(Data::new(self.depth, &tag)),
                    Some(data) if self.depth == data.depth + 1 => data.start(&tag),
                    _ => {}
                }
            }
            Event::Text(piece) => self.text.push_str(&piece),
            Event::CData(piece) => self.text.push_str(&piece),
            Event::End(tag) => {
                let depth = self.depth;
                self.depth = depth.saturating_sub(1);
                let text = std::mem::take(&mut self.text);
                match &mut self.data {
                    Some(data) if depth == data.depth + 1 => data.end(tag.local_name().as_ref(), text.trim()),
                    Some(data) if depth == data.depth => return self.data.take().and_then(Data::into_file),
                    _ => {}
                }
            }
            _ => {}
        }
        None
    }
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
        if name == "checksum" {
            self.file.checksum = text.to_ascii_lowercase();
        }
    }

    /// `None`: not a file of this repository.
    fn into_file(self) -> Option<RepoFile> {
        (!self.is_elsewhere && is_below(&self.file.href)).then_some(self.file)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::formats::testing::{cut, cuts, drive};

    const SHA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// The files that the pieces of a `repomd.xml` name.
    fn files_in<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<RepoFile> {
        let (mut files, mut found) = (Files::default(), Vec::new());
        for piece in pieces {
            files.write(piece, &mut |file| found.push(file));
        }
        files.end(&mut |file| found.push(file));
        found
    }

    fn repomd_files(xml: &[u8]) -> Vec<RepoFile> {
        files_in([xml])
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
                },
                RepoFile {
                    kind: "group".to_owned(),
                    href: "repodata/comps&x.xml".to_owned(),
                    checksum_type: "sha512".to_owned(),
                    checksum: "ab12".to_owned(),
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
        let xml = format!("<repomd>{}</repomd>", xml.concat());
        let mut repomd = Repomd::new("os/repodata/repomd.xml");
        assert_eq!(drive(&mut repomd, [xml.as_bytes()]).unwrap(), xml.as_bytes());
        let facts = repomd.take_facts();
        let members = facts.iter().map(|fact| match fact {
            Fact::Member(member) => (member.path.as_str(), member.is_read_with_it),
            other => panic!("{other:?}"),
        });
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

    fn told<'a>(manifest: &str, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Told> {
        let (mut reader, mut told) = (Listed::new(manifest), Vec::new());
        for piece in pieces {
            reader.write(piece, &mut told).unwrap();
        }
        reader.end(&mut told).unwrap();
        told
    }

    #[test]
    fn files_named_by_checksum_and_the_list_of_packages_are_told() {
        let data = |kind: &str, name: &str, checksum: &str| {
            format!(
                r#"<data type="{kind}"><checksum type="{checksum}">{SHA}</checksum><location href="repodata/{name}"/></data>"#
            )
        };
        let named = |name: &str| format!("{SHA}-{name}");
        let xml = [
            data("primary_db", &named("primary.sqlite.bz2"), "sha256"),
            data("primary", &named("primary.xml.xz"), "md5"),
            data("primary", "primary.xml.zst", "sha256"),
            data("primary", &named("primary.xml.gz"), "sha256"),
        ];
        let xml = format!("<repomd>{}</repomd>", xml.concat());
        let file = |name: &str, digest: Option<&str>| {
            Told::File(Release {
                file: format!("os/repodata/{}", named(name)),
                published: None,
                digest: digest.and_then(|kind| crate::cache::Expected::new(kind, SHA)),
            })
        };
        assert_eq!(
            told("os/repodata/repomd.xml", [xml.as_bytes()]),
            [
                file("primary.sqlite.bz2", Some("sha256")),
                file("primary.xml.xz", None),
                Told::Index("os/repodata/primary.xml.zst".to_owned()),
                file("primary.xml.gz", Some("sha256")),
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

    #[test]
    fn what_never_ends_is_not_held() {
        let file = br#"<data><location href="repodata/a.xml"/></data>"#;
        let long = vec![b' '; 3 * MAX_HELD];
        for never in ["<!-- ", "<a b=\"", "", "<![CDATA["] {
            let (mut files, mut found) = (Files::default(), 0);
            let document = [file, never.as_bytes(), &long, file].concat();
            for piece in document.chunks(1 << 16) {
                files.write(piece, &mut |_| found += 1);
                let held = files.xml.held() + files.elements.text.len();
                assert!(held <= MAX_HELD + (1 << 16), "{never}");
            }
            assert_eq!((found, files.xml.is_done()), (1, true), "{never}");
        }
    }

    proptest! {
        #[test]
        fn no_document_panics(xml in proptest::collection::vec(prop_oneof![
            Just("<data type=\"x\">"), Just("</data>"), Just("<location href=\"a/b\""), Just("/>"), Just(">"),
            Just("<checksum type='sha'>"), Just("</"), Just("<!--"), Just("-->"), Just("&#x;"), Just("\""), Just("é"),
            Just("<![CDATA["), Just("<?"), Just("="), Just(" href="), Just("<size>"), Just("7"),
        ], 0..60), at in cuts()) {
            let xml = xml.concat();
            let files = repomd_files(xml.as_bytes());
            for file in &files {
                prop_assert!(is_below(&file.href));
            }
            prop_assert_eq!(files_in(cut(xml.as_bytes(), &at)), files);
        }

        #[test]
        fn no_bytes_panic(xml in proptest::collection::vec(any::<u8>(), 0..300), at in cuts()) {
            prop_assert_eq!(files_in(cut(&xml, &at)), repomd_files(&xml));
        }

        #[test]
        fn pieces_make_no_difference(
            data in proptest::collection::vec(prop_oneof![
                Just(r#"<data type="a"><checksum type="sha256">A<!-- < > -->B</checksum><location href="a"/></data>"#),
                Just("<data type='x<y>z'>\n<location href='b/&lt;&amp;c'></location>&x; & <![CDATA[ </data> ]]></data>"),
                Just("<?pi <data>?><!-- <data type='n'><location href='n'/></data> -->\u{fffd}é "),
                Just("<data><data><location href='deep'/></data><location href='d'/></data></unmatched>"),
            ], 0..8),
            at in cuts()
        ) {
            let xml = format!("\u{feff}<!DOCTYPE repomd [<!ENTITY x '<data>'>]><repomd>{}</repomd>", data.concat());
            prop_assert_eq!(files_in(cut(xml.as_bytes(), &at)), repomd_files(xml.as_bytes()));
        }
    }
}
