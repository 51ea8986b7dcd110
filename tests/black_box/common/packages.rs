//! Small real packages, made here: wheels, npm tarballs, Helm charts, and the indexes that name them.

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use super::upstream::{File, Reply, Seen, Upstream};

/// A moment as indexes write it (RFC 3339).
pub fn rfc3339(at: SystemTime) -> String {
    // cargo knows whole seconds only.
    let at = time::OffsetDateTime::from(at).replace_nanosecond(0).expect("a second");
    at.format(&time::format_description::well_known::Rfc3339)
        .expect("a date")
}

/// A zip archive whose members are stored, not compressed.
pub fn zip(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in members {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let offset = out.len() as u32;
        // Version, flags, method (stored), time, date (1980-01-01), checksum, sizes, lengths of name and extra field.
        let mut shared = Vec::new();
        for value in [20u16, 0, 0, 0, 0x21] {
            shared.extend(value.to_le_bytes());
        }
        for value in [crc.sum(), data.len() as u32, data.len() as u32] {
            shared.extend(value.to_le_bytes());
        }
        for value in [name.len() as u16, 0] {
            shared.extend(value.to_le_bytes());
        }
        out.extend(0x0403_4b50u32.to_le_bytes());
        out.extend(&shared);
        out.extend(name.as_bytes());
        out.extend(data);
        directory.extend(0x0201_4b50u32.to_le_bytes());
        directory.extend(20u16.to_le_bytes());
        directory.extend(&shared);
        for value in [0u16, 0, 0] {
            directory.extend(value.to_le_bytes());
        }
        directory.extend((0o100_644u32 << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    let size = directory.len() as u32;
    out.extend(directory);
    out.extend(0x0605_4b50u32.to_le_bytes());
    for value in [0u16, 0, members.len() as u16, members.len() as u16] {
        out.extend(value.to_le_bytes());
    }
    out.extend(size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend(0u16.to_le_bytes());
    out
}

/// A gzip-compressed tar archive of files.
pub fn tgz(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, data) in members {
        let mut header = [0u8; 512];
        assert!(name.len() < 100, "a short name");
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[136..148].copy_from_slice(b"14000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum = header.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(*data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    gzip(&tar)
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes), &mut out).expect("gzip");
    out
}

/// One wheel, with its core metadata.
#[derive(Clone)]
pub struct Wheel {
    pub name: String,
    pub version: String,
    pub file: String,
    pub bytes: Bytes,
    pub metadata: String,
    /// Spelled as in the index.
    pub published: String,
}

impl Wheel {
    /// A pure wheel with one module that says its version, and some ballast so that ranges are worth while.
    pub fn new(name: &str, version: &str, requires: &[&str], ballast: usize) -> Self {
        let module = name.replace(['-', '.'], "_").to_lowercase();
        let mut metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: >=3.7\n");
        for requirement in requires {
            metadata.push_str(&format!("Requires-Dist: {requirement}\n"));
        }
        let folder = format!("{module}-{version}.dist-info");
        let noise = super::pattern::Pattern::new(ballast as u64 + 1, ballast as u64)
            .whole()
            .to_vec();
        let mut members = vec![
            (
                format!("{module}/__init__.py"),
                format!("__version__ = {version:?}\n").into_bytes(),
            ),
            (format!("{module}/ballast.bin"), noise),
            (format!("{folder}/METADATA"), metadata.clone().into_bytes()),
            (
                format!("{folder}/WHEEL"),
                b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_vec(),
            ),
        ];
        let mut record = String::new();
        for (path, data) in &members {
            let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(data));
            record.push_str(&format!("{path},sha256={digest},{}\n", data.len()));
        }
        record.push_str(&format!("{folder}/RECORD,,\n"));
        members.push((format!("{folder}/RECORD"), record.into_bytes()));
        let file = format!("{module}-{version}-py3-none-any.whl");
        Self {
            name: name.into(),
            version: version.into(),
            file,
            bytes: zip(&members).into(),
            metadata,
            published: "2024-01-02T03:04:05.678901Z".into(),
        }
    }

    pub fn published(mut self, at: SystemTime) -> Self {
        self.published = rfc3339(at);
        self
    }

    pub fn sha256(&self) -> String {
        super::sha256(&self.bytes)
    }

    /// The project's name as the index spells it.
    pub fn project(&self) -> String {
        let mut out = String::new();
        for character in self.name.to_lowercase().chars() {
            match character {
                '-' | '_' | '.' if out.ends_with('-') => {}
                '-' | '_' | '.' => out.push('-'),
                other => out.push(other),
            }
        }
        out
    }

    /// The path of its file on a host of files.
    pub fn path(&self) -> String {
        let digest = self.sha256();
        format!("/packages/{}/{}/{}", &digest[..2], &digest[2..10], self.file)
    }
}

/// How an upstream index of Python packages behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexForm {
    /// HTML whatever is asked (PEP 503).
    Html,
    /// HTML or JSON, as is asked (PEP 691).
    Both,
}

/// The JSON and HTML index of one project; links start with `files` (a scheme and host, or nothing).
pub fn pypi_pages(project: &str, wheels: &[&Wheel], files: &str) -> (String, String) {
    let mut html = format!(
        "<!DOCTYPE html>\n<html><head><meta name=\"pypi:repository-version\" content=\"1.1\">\
         <title>Links for {project}</title></head>\n<body><h1>Links for {project}</h1>\n"
    );
    let mut list = Vec::new();
    for wheel in wheels {
        let url = format!("{files}{}", wheel.path());
        let meta = super::sha256(wheel.metadata.as_bytes());
        html.push_str(&format!(
            "<a href=\"{url}#sha256={}\" data-requires-python=\"&gt;=3.7\" data-core-metadata=\"sha256={meta}\" \
             data-dist-info-metadata=\"sha256={meta}\">{}</a><br />\n",
            wheel.sha256(),
            wheel.file
        ));
        list.push(json!({
            "filename": wheel.file,
            "url": url,
            "hashes": {"sha256": wheel.sha256()},
            "requires-python": ">=3.7",
            "core-metadata": {"sha256": meta},
            "size": wheel.bytes.len(),
            "upload-time": wheel.published,
            "yanked": false,
            "x-unknown": {"kept": [1, 2.50, null]},
        }));
    }
    html.push_str("</body></html>\n");
    let versions = wheels.iter().map(|wheel| wheel.version.clone()).collect::<Vec<_>>();
    let page = json!({"meta": {"api-version": "1.1", "_last-serial": 7}, "name": project,
                      "versions": versions, "files": list});
    (html, page.to_string())
}

pub const SIMPLE_JSON: &str = "application/vnd.pypi.simple.v1+json";

/// Serves the index (`/simple/…`) of these wheels on `index` and their files on `files`.
pub fn serve_pypi(index: &Upstream, files: &Upstream, form: IndexForm, wheels: &[Wheel]) {
    let link = if index.address() == files.address() {
        String::new()
    } else {
        files.base()
    };
    let mut projects = wheels.iter().map(Wheel::project).collect::<Vec<_>>();
    projects.sort();
    projects.dedup();
    for project in &projects {
        let own = wheels
            .iter()
            .filter(|wheel| wheel.project() == *project)
            .collect::<Vec<_>>();
        let (html, page) = pypi_pages(project, &own, &link);
        let stamp = format!("\"{project}-{}\"", own.len());
        index.on(&format!("/simple/{project}/"), move |seen| {
            let accept = seen.header("accept").unwrap_or("*/*");
            if form == IndexForm::Both && accept.contains("json") {
                let etag = stamp.replace('"', "").to_owned();
                File::new(page.clone())
                    .etag(&format!("\"{etag}-j\""))
                    .content_type(SIMPLE_JSON)
                    .reply(seen)
            } else {
                File::new(html.clone())
                    .etag(&stamp)
                    .content_type("text/html")
                    .reply(seen)
            }
        });
    }
    let links = projects
        .iter()
        .map(|name| format!("<a href=\"/simple/{name}/\">{name}</a>\n"))
        .collect::<String>();
    index.reply(
        "/simple/",
        Reply::ok(format!("<html><body>\n{links}</body></html>")).content_type("text/html"),
    );
    for wheel in wheels {
        let etag = format!("\"{}\"", &wheel.sha256()[..12]);
        let file = File::new(wheel.bytes.clone())
            .etag(&etag)
            .content_type("application/octet-stream");
        files.file(&wheel.path(), file);
        let metadata = File::new(wheel.metadata.clone()).content_type("application/octet-stream");
        files.file(&format!("{}.metadata", wheel.path()), metadata);
    }
}

/// One version of an npm package.
#[derive(Clone)]
pub struct NpmVersion {
    pub name: String,
    pub version: String,
    pub bytes: Bytes,
    pub dependencies: Value,
    /// Spelled as in the packument.
    pub published: String,
}

impl NpmVersion {
    pub fn new(name: &str, version: &str, dependencies: Value) -> Self {
        let manifest = json!({"name": name, "version": version, "main": "index.js", "license": "MIT",
                              "dependencies": dependencies});
        let module = format!("module.exports = {:?};\n", format!("{name}@{version}"));
        let bytes = tgz(&[
            ("package/package.json", manifest.to_string().as_bytes()),
            ("package/index.js", module.as_bytes()),
        ]);
        Self {
            name: name.into(),
            version: version.into(),
            bytes: bytes.into(),
            dependencies,
            published: "2021-01-01T00:00:00.000Z".into(),
        }
    }

    pub fn published(mut self, at: SystemTime) -> Self {
        self.published = rfc3339(at);
        self
    }

    /// `/@scope/name/-/name-1.0.0.tgz`.
    pub fn path(&self) -> String {
        let short = self.name.rsplit('/').next().unwrap_or_default();
        format!("/{}/-/{short}-{}.tgz", self.name, self.version)
    }

    pub fn integrity(&self) -> String {
        format!("sha512-{}", STANDARD.encode(Sha512::digest(&self.bytes)))
    }

    fn manifest(&self, tarballs: &str) -> Value {
        json!({
            "name": self.name,
            "version": self.version,
            "main": "index.js",
            "license": "MIT",
            "dependencies": self.dependencies,
            "dist": {
                "integrity": self.integrity(),
                "shasum": "0000000000000000000000000000000000000000",
                "tarball": format!("{tarballs}{}", self.path()),
                "fileCount": 2,
                "unpackedSize": 321,
                "signatures": [{"keyid": "SHA256:x", "sig": "MEUC"}],
            },
            "_hasShrinkwrap": false,
        })
    }
}

pub const NPM_ABBREVIATED: &str = "application/vnd.npm.install-v1+json";

/// The full and the abbreviated packument; tarballs start with `tarballs` (scheme and host).
pub fn packuments(versions: &[&NpmVersion], tarballs: &str) -> (Value, Value) {
    let name = &versions[0].name;
    let latest = &versions[versions.len() - 1].version;
    let mut list = serde_json::Map::new();
    let mut time = serde_json::Map::new();
    time.insert("created".into(), "2020-01-01T00:00:00.000Z".into());
    time.insert("modified".into(), "2021-06-07T08:09:10.111Z".into());
    for version in versions {
        let mut manifest = version.manifest(tarballs);
        // shasum is a SHA-1, which nothing here computes: integrity stands in for it.
        manifest["dist"].as_object_mut().expect("an object").remove("shasum");
        list.insert(version.version.clone(), manifest);
        time.insert(version.version.clone(), version.published.clone().into());
    }
    let full = json!({"_id": name, "name": name, "dist-tags": {"latest": latest}, "versions": list,
                      "time": time, "readme": "# read me", "license": "MIT"});
    let short = json!({"name": name, "dist-tags": {"latest": latest}, "versions": list,
                       "modified": "2021-06-07T08:09:10.111Z"});
    (full, short)
}

/// Serves a registry of these versions on `registry`, the tarballs on `tarballs`.
pub fn serve_npm(registry: &Upstream, tarballs: &Upstream, versions: &[NpmVersion]) {
    let mut names = versions.iter().map(|version| version.name.clone()).collect::<Vec<_>>();
    names.sort();
    names.dedup();
    for name in &names {
        let own = versions
            .iter()
            .filter(|version| version.name == *name)
            .collect::<Vec<_>>();
        let (full, short) = packuments(&own, &tarballs.base());
        let (full, short) = (full.to_string(), short.to_string());
        let stamp = super::sha256(full.as_bytes())[..12].to_owned();
        let answer = Arc::new(move |seen: &Seen| {
            let (text, kind, tail) = if seen.header("accept").unwrap_or_default().contains(NPM_ABBREVIATED) {
                (&short, NPM_ABBREVIATED, "s")
            } else {
                (&full, "application/json", "f")
            };
            let etag = format!("\"{stamp}{tail}\"");
            File::new(text.clone())
                .etag(&etag)
                .content_type(kind)
                .header("Vary", "Accept")
                .reply(seen)
        });
        // A registry knows a scoped package by its encoded name only.
        for slash in ["%2f", "%2F"] {
            let answer = answer.clone();
            registry.on(&format!("/{}", name.replace('/', slash)), move |seen| answer(seen));
        }
    }
    for version in versions {
        let etag = format!("\"{}\"", &super::sha256(&version.bytes)[..12]);
        tarballs.file(
            &version.path(),
            File::new(version.bytes.clone())
                .etag(&etag)
                .content_type("application/octet-stream"),
        );
    }
    registry.fallback(|seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", "/-/ping") => Reply::ok("{}").content_type("application/json"),
        ("POST", "/-/npm/v1/security/advisories/bulk") => Reply::ok("{}").content_type("application/json"),
        _ => Reply::new(404, r#"{"error":"Not found"}"#).content_type("application/json"),
    });
}

/// A Helm chart, packaged.
#[derive(Clone)]
pub struct Chart {
    pub name: String,
    pub version: String,
    pub bytes: Bytes,
}

impl Chart {
    pub fn new(name: &str, version: &str) -> Self {
        let chart = format!("apiVersion: v2\nname: {name}\nversion: {version}\ndescription: A chart for tests\n");
        let template = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: test\n";
        let bytes = tgz(&[
            (&format!("{name}/Chart.yaml"), chart.as_bytes()),
            (&format!("{name}/values.yaml"), b"answer: 42\n"),
            (&format!("{name}/templates/map.yaml"), template.as_bytes()),
        ]);
        Self {
            name: name.into(),
            version: version.into(),
            bytes: bytes.into(),
        }
    }

    pub fn file(&self) -> String {
        format!("{}-{}.tgz", self.name, self.version)
    }

    /// Its entry in `index.yaml`, with these URLs.
    pub fn entry(&self, urls: &[&str]) -> String {
        let urls = urls.iter().map(|url| format!("    - {url}\n")).collect::<String>();
        format!(
            "  {}:\n  - apiVersion: v2\n    created: \"2024-01-02T03:04:05.678901234Z\"\n    \
             description: A chart for tests\n    digest: {}\n    name: {}\n    urls:\n{urls}    version: {}\n    \
             annotations:\n      x-unknown: kept\n",
            self.name,
            super::sha256(&self.bytes),
            self.name,
            self.version
        )
    }
}

/// An `index.yaml` of these entries.
pub fn helm_index(entries: &[String]) -> String {
    format!(
        "apiVersion: v1\nentries:\n{}generated: \"2024-01-02T03:04:05.678901234Z\"\n",
        entries.concat()
    )
}

/// One crate, as a registry has it.
#[derive(Clone)]
pub struct Crate {
    pub name: String,
    pub version: String,
    pub bytes: Bytes,
    dependencies: Vec<(String, String)>,
    /// Spelled as in the index, where it stands there.
    published: Option<String>,
}

impl Crate {
    /// A library whose `say()` gives its name, version and what its dependencies (name, requirement) say.
    pub fn new(name: &str, version: &str, dependencies: &[(&str, &str)]) -> Self {
        let mut manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2021\"\n[dependencies]\n");
        let mut said = format!("String::from(\"{name} {version}\")");
        for (dependency, requirement) in dependencies {
            manifest.push_str(&format!("{dependency} = \"{requirement}\"\n"));
            said.push_str(&format!(" + \", \" + &{}::say()", dependency.replace('-', "_")));
        }
        let library = format!("pub fn say() -> String {{ {said} }}\n");
        let folder = format!("{name}-{version}");
        let bytes = tgz(&[
            (&format!("{folder}/Cargo.toml"), manifest.as_bytes()),
            (&format!("{folder}/src/lib.rs"), library.as_bytes()),
        ]);
        Self {
            name: name.into(),
            version: version.into(),
            bytes: bytes.into(),
            dependencies: dependencies
                .iter()
                .map(|(name, requirement)| ((*name).into(), (*requirement).into()))
                .collect(),
            published: None,
        }
    }

    pub fn published(mut self, at: SystemTime) -> Self {
        self.published = Some(rfc3339(at));
        self
    }

    /// Hexadecimal.
    pub fn checksum(&self) -> String {
        super::sha256(&self.bytes)
    }

    /// The path of its file in an index, of all versions.
    pub fn index(&self) -> String {
        let name = self.name.to_lowercase();
        match name.len() {
            1 | 2 => format!("{}/{name}", name.len()),
            3 => format!("3/{}/{name}", &name[..1]),
            _ => format!("{}/{}/{name}", &name[..2], &name[2..4]),
        }
    }

    /// Its line in that file.
    pub fn line(&self) -> String {
        let dependency = |(name, requirement): &(String, String)| {
            json!({
                "name": name, "req": requirement, "features": [], "optional": false, "default_features": true,
                "target": null, "kind": "normal",
            })
        };
        let dependencies: Vec<Value> = self.dependencies.iter().map(dependency).collect();
        let mut line = json!({
            "name": self.name, "vers": self.version, "deps": dependencies, "cksum": self.checksum(), "features": {},
            "yanked": false,
        });
        if let Some(published) = &self.published {
            line["pubtime"] = published.clone().into();
        }
        format!("{line}\n")
    }

    /// Where a registry has it below its folder of crates.
    pub fn download(&self) -> String {
        format!("{}/{}/download", self.name, self.version)
    }
}

/// Answers for a registry with this index, below `/index`, and crates in `/crates` of `files`, which has the web API too.
pub fn serve_crates(index: &Upstream, files: &Upstream, crates: &[Crate]) {
    let config = json!({"dl": files.url("/crates"), "api": files.base()});
    index.file(
        "/index/config.json",
        File::new(config.to_string())
            .etag("\"config\"")
            .content_type("application/json"),
    );
    for one in crates {
        let same = crates.iter().filter(|other| other.name == one.name);
        let lines: String = same.map(Crate::line).collect();
        let etag = format!("\"{}\"", &super::sha256(lines.as_bytes())[..12]);
        index.file(
            &format!("/index/{}", one.index()),
            File::new(lines).etag(&etag).content_type("text/plain"),
        );
        files.file(
            &format!("/crates/{}", one.download()),
            File::new(one.bytes.clone()).content_type("application/gzip"),
        );
    }
}
