//! `primary.xml`, read while it comes: the packages of a repository, with their checksums. Decoded it has hundreds of megabytes.

use std::ops::ControlFlow;

use quick_xml::events::{BytesStart, Event};

use super::xml::{MAX_HELD, Xml, attribute, is_below};
use crate::formats::IndexError;
use crate::formats::links::decode_once;
use crate::formats::release::{Release, TellingReader, Told};
use crate::formats::unpack::Unpack;

/// Reads a list of packages, packed or not.
pub(super) struct Primary {
    unpack: Unpack,
    xml: Xml,
    packages: Packages,
}

impl Primary {
    /// For the document under this decoded path.
    pub(super) fn new(path: &str) -> Self {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        Primary {
            unpack: Unpack::default(),
            xml: Xml::default(),
            packages: Packages {
                root: folder.strip_suffix("repodata").unwrap_or_default().to_owned(),
                depth: 0,
                package: None,
                text: None,
            },
        }
    }
}

impl TellingReader for Primary {
    fn write(&mut self, piece: &[u8], told: &mut Vec<Told>) -> Result<(), IndexError> {
        let (xml, packages) = (&mut self.xml, &mut self.packages);
        self.unpack.write(piece, &mut |piece| {
            xml.write(piece, &mut |event| packages.read(event, told));
        })
    }

    fn end(&mut self, told: &mut Vec<Told>) -> Result<(), IndexError> {
        let (xml, packages) = (&mut self.xml, &mut self.packages);
        let ended = self.unpack.end(&mut |piece| {
            xml.write(piece, &mut |event| packages.read(event, told));
        });
        self.xml.end(&mut |event| self.packages.read(event, told));
        ended
    }
}

/// Where in the document it is read.
struct Packages {
    /// What the paths of its repository begin with.
    root: String,
    /// Elements that are open.
    depth: usize,
    package: Option<Package>,
    /// Of the checksum that is open.
    text: Option<String>,
}

/// The `<package>` element that is being read.
struct Package {
    /// How deep it stands.
    depth: usize,
    href: String,
    is_elsewhere: bool,
    checksum_type: String,
    checksum: String,
}

impl Packages {
    fn read(&mut self, event: Event<'_>, told: &mut Vec<Told>) -> ControlFlow<()> {
        match event {
            Event::Start(tag) => {
                self.depth += 1;
                match &mut self.package {
                    None if tag.local_name().as_ref() == "package" => {
                        self.package = Some(Package {
                            depth: self.depth,
                            href: String::new(),
                            is_elsewhere: false,
                            checksum_type: String::new(),
                            checksum: String::new(),
                        });
                    }
                    Some(package) if self.depth == package.depth + 1 => self.text = package.start(&tag),
                    _ => {}
                }
            }
            Event::Text(piece) => self.add(&piece),
            Event::CData(piece) => self.add(&piece),
            Event::End(_) => {
                let depth = self.depth;
                self.depth = depth.saturating_sub(1);
                match &mut self.package {
                    Some(package) if depth == package.depth + 1 => {
                        if let Some(text) = self.text.take() {
                            package.checksum = text.trim().to_ascii_lowercase();
                        }
                    }
                    Some(package) if depth == package.depth => {
                        let ended = self.package.take();
                        told.extend(ended.and_then(|package| package.told(&self.root)));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        match self.text.as_ref().is_some_and(|text| text.len() > MAX_HELD) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn add(&mut self, piece: &str) {
        if let Some(text) = &mut self.text {
            text.push_str(piece);
        }
    }
}

impl Package {
    /// A child begins; whether its text matters.
    fn start(&mut self, tag: &BytesStart<'_>) -> Option<String> {
        match tag.local_name().as_ref() {
            "location" => {
                self.href = attribute(tag, "href").unwrap_or_default();
                self.is_elsewhere = attribute(tag, "base").is_some_and(|base| !base.is_empty());
                None
            }
            "checksum" => {
                self.checksum_type = attribute(tag, "type").unwrap_or_default();
                Some(String::new())
            }
            _ => None,
        }
    }

    /// `None`: not a file of this repository.
    fn told(self, root: &str) -> Option<Told> {
        let href = self.href.strip_prefix("./").unwrap_or(&self.href);
        (!self.is_elsewhere && is_below(href)).then(|| {
            Told::File(Release {
                file: format!("{root}{}", decode_once(href)),
                published: None,
                digest: super::digest(&self.checksum_type, &self.checksum),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::formats::testing::{cut, cuts};

    /// What the pieces of a document tell.
    fn told<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Release>, Result<(), IndexError>) {
        let (mut reader, mut told) = (Primary::new("os/repodata/primary.xml"), Vec::new());
        let mut pieces = pieces.into_iter();
        let read = pieces.try_for_each(|piece| reader.write(piece, &mut told));
        let read = read.and_then(|()| reader.end(&mut told));
        let files = told.into_iter().map(|told| match told {
            Told::File(release) => release,
            Told::Index(path) => panic!("{path}"),
        });
        (files.collect(), read)
    }

    fn all(document: &[u8]) -> Vec<Release> {
        let (releases, read) = told([document]);
        read.unwrap();
        releases
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// What `createrepo_c` writes.
    fn document(packages: &[(String, &str, String)]) -> String {
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<metadata xmlns=\"http://linux.duke.example/metadata/common\" \
             xmlns:rpm=\"http://linux.duke.example/metadata/rpm\" packages=\"{}\">\n",
            packages.len()
        );
        for (href, kind, checksum) in packages {
            let href = href.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
            xml.push_str(&format!(
                "<package type=\"rpm\">\n  <name>a</name>\n  <arch>noarch</arch>\n  <version epoch=\"0\" ver=\"1\" rel=\"1\"/>\n  \
                 <checksum type=\"{kind}\" pkgid=\"YES\">{checksum}</checksum>\n  <summary>é &amp; ü</summary>\n  \
                 <description>a &lt;package&gt;</description>\n  <time file=\"1700000000\" build=\"1600000000\"/>\n  \
                 <size package=\"1\" installed=\"2\" archive=\"3\"/>\n  <location href=\"{href}\"/>\n  <format>\n    \
                 <rpm:license>MIT</rpm:license>\n    <rpm:provides>\n      <rpm:entry name=\"a\" flags=\"EQ\" epoch=\"0\" ver=\"1\"/>\n    \
                 </rpm:provides>\n    <file>/usr/bin/a</file>\n  </format>\n</package>\n"
            ));
        }
        xml + "</metadata>\n"
    }

    #[test]
    fn a_package_elsewhere_is_none_of_this_repository() {
        let sha = "ab".repeat(32);
        let package = |location: &str| {
            format!(
                "<package><checksum type='sha256'> <![CDATA[{}]]>\n</checksum>{location}</package>",
                sha.to_uppercase()
            )
        };
        let xml = [
            package("<location xml:base='https://far.example/' href='a.rpm'/>"),
            package("<location xml:base='' href='./b.rpm'/>"),
            package("<location href='../c.rpm'/>"),
            package("<location href='https://far.example/d.rpm'/>"),
            package("<location href='a%2Bb/e%20f.rpm'></location><format><location href='g.rpm'/></format>"),
            package(""),
        ];
        let releases = all(format!("<metadata>{}</metadata>", xml.concat()).as_bytes());
        let files: Vec<&str> = releases.iter().map(|release| release.file.as_str()).collect();
        assert_eq!(files, ["os/b.rpm", "os/a+b/e f.rpm"]);
        for release in &releases {
            assert_eq!(release.digest.as_ref().unwrap().to_string(), format!("sha256:{sha}"));
        }
    }

    #[test]
    fn all_checksums_that_count_are_read() {
        let kinds = [
            ("sha256", 64),
            ("sha512", 128),
            ("sha", 40),
            ("sha1", 40),
            ("md5", 32),
            ("sha256", 40),
            ("", 64),
        ];
        let packages: Vec<_> = kinds
            .iter()
            .map(|(kind, digits)| ("a.rpm".to_owned(), *kind, "a".repeat(*digits)))
            .collect();
        let releases = all(document(&packages).as_bytes());
        let digests = releases.into_iter().map(|release| Some(release.digest?.to_string()));
        let right = [("sha256", 64), ("sha512", 128), ("sha1", 40), ("sha1", 40)];
        let right = right.map(|(kind, digits)| Some(format!("{kind}:{}", "a".repeat(digits))));
        assert!(digests.eq(right.into_iter().chain([None, None, None])));
    }

    #[test]
    fn what_is_cut_or_damaged_tells_what_came_before() {
        let packages: Vec<_> = (0..1000)
            .map(|number| (format!("{number}.rpm"), "sha256", format!("{number:064x}")))
            .collect();
        let xml = document(&packages);
        let zstd = zstd::encode_all(xml.as_bytes(), 3).unwrap();
        for packed in [gzip(xml.as_bytes()), zstd] {
            let (releases, read) = told(packed[..packed.len() / 2].chunks(100));
            assert!(read.is_err());
            assert!(!releases.is_empty() && releases.len() < 1000, "{}", releases.len());
            let mut damaged = packed.clone();
            damaged[packed.len() / 2..].fill(0xff);
            let (releases, read) = told(damaged.chunks(100));
            assert!(read.is_err());
            assert!(releases.len() < 1000);
        }
        assert!(told([&b"\xfd7zXZ\0 packed otherwise"[..]]).1.is_err());
        assert!(all(b"").is_empty());
    }

    #[test]
    fn a_long_list_is_read_in_little_memory() {
        let (mut reader, mut told) = (Primary::new("repodata/primary.xml.gz"), Vec::new());
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for number in 0..200_000_u32 {
            let package = [(format!("Packages/{number}.rpm"), "sha256", format!("{number:064x}"))];
            let xml = document(&package);
            let from = if number == 0 { 0 } else { xml.find("<package ").unwrap() };
            encoder
                .write_all(&xml.as_bytes()[from..xml.len() - "</metadata>\n".len()])
                .unwrap();
            let packed = std::mem::take(encoder.get_mut());
            if !packed.is_empty() {
                reader.write(&packed, &mut told).unwrap();
            }
            assert!(reader.xml.held() < 1 << 17);
        }
        reader.write(&encoder.finish().unwrap(), &mut told).unwrap();
        reader.end(&mut told).unwrap();
        assert_eq!(told.len(), 200_000);
        let last = Release {
            file: "Packages/199999.rpm".to_owned(),
            published: None,
            digest: super::super::digest("sha256", &format!("{:064x}", 199_999)),
        };
        assert_eq!(told.last(), Some(&Told::File(last)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            packages in proptest::collection::vec(
                ("[a-zA-Z0-9+._~^&<\" é-]{1,20}/[a-zA-Z0-9+._~^&<\" é-]{1,30}\\.rpm", any::<[u8; 32]>(), any::<bool>()),
                0..10,
            ),
            packing in 0..3,
            at in cuts(),
        ) {
            let is_name = |href: &str| href.split('/').all(|segment| segment != "." && segment != "..");
            let packages: Vec<_> = packages
                .into_iter()
                .filter(|(href, ..)| is_name(href) && href.trim() == href)
                .map(|(href, digest, is_long)| match is_long {
                    true => (href, "sha256", hex::encode(digest)),
                    false => (href, "sha", hex::encode(&digest[..20])),
                })
                .collect();
            let xml = document(&packages);
            let bytes = match packing {
                0 => xml.into_bytes(),
                1 => gzip(xml.as_bytes()),
                _ => zstd::encode_all(xml.as_bytes(), 1).unwrap(),
            };
            let (read, end) = told(cut(&bytes, &at));
            end.unwrap();
            let written = packages.into_iter().map(|(href, kind, checksum)| Release {
                file: format!("os/{href}"),
                published: None,
                digest: super::super::digest(kind, &checksum),
            });
            prop_assert_eq!(read, written.collect::<Vec<_>>());
        }

        #[test]
        fn no_document_panics(xml in proptest::collection::vec(prop_oneof![
            Just("<package>"), Just("</package>"), Just("<location href=\"a/b\""), Just("/>"), Just(">"), Just("é"),
            Just("<checksum type='sha'>"), Just("</"), Just("<!--"), Just("-->"), Just("&#x;"), Just("\""),
            Just("<![CDATA["), Just("<?"), Just("="), Just(" href="), Just("\u{1f}\u{8b}"), Just("7"),
        ], 0..60), at in cuts()) {
            let xml = xml.concat();
            let (whole, _) = told([xml.as_bytes()]);
            prop_assert_eq!(told(cut(xml.as_bytes(), &at)).0, whole);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..4_usize, at in cuts()) {
            let begin: &[u8] = [&b""[..], &[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], b"<package>"][kind];
            let bytes = [begin, &bytes].concat();
            let _ = told(cut(&bytes, &at));
        }
    }
}
