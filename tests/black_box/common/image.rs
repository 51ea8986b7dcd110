//! Container images, indexes and artifacts, made here byte by byte.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use super::packages::{gunzip, tgz};
use super::upstream::Body;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// What a client of today asks a tag with.
pub const ACCEPT_ALL: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// What a client asks with that knows single images only.
pub const ACCEPT_SINGLE: &str =
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json";

/// A blob and its name.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub body: Body,
}

impl Blob {
    pub fn new(body: impl Into<Body>) -> Self {
        let body = body.into();
        Self {
            digest: digest_of(&body),
            body,
        }
    }

    pub fn sha512(body: impl Into<Body>) -> Self {
        let body = body.into();
        let bytes = body.bytes(0, body.len() as usize);
        Self {
            digest: format!("sha512:{}", super::hex(&Sha512::digest(&bytes))),
            body,
        }
    }

    pub fn bytes(&self) -> Bytes {
        self.body.bytes(0, self.body.len() as usize)
    }

    /// A descriptor of it.
    pub fn descriptor(&self, kind: &str) -> Value {
        json!({"mediaType": kind, "digest": self.digest, "size": self.body.len()})
    }
}

/// SHA-256 of a body of any size, as registries write it.
pub fn digest_of(body: &Body) -> String {
    let (mut hash, mut offset) = (Sha256::new(), 0);
    while offset < body.len() {
        let piece = body.bytes(offset, 1 << 20);
        hash.update(&piece);
        offset += piece.len() as u64;
    }
    format!("sha256:{}", super::hex(&hash.finalize()))
}

/// A digest that nothing has.
pub fn unknown_digest() -> String {
    format!("sha256:{}", "0123456789abcdef".repeat(4))
}

/// A manifest of any kind, with all that it names.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub kind: String,
    pub bytes: Bytes,
    pub digest: String,
    pub blobs: Vec<Blob>,
    pub children: Vec<Manifest>,
    /// What it refers to.
    pub subject: Option<String>,
    pub value: Value,
}

impl Manifest {
    /// Three spaces of indentation, as some tools write: whoever parses and writes it again changes its digest.
    pub fn new(value: Value, blobs: Vec<Blob>, children: Vec<Manifest>) -> Self {
        let mut bytes = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"   ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
        value.serialize(&mut serializer).expect("in memory");
        Self {
            kind: value["mediaType"].as_str().unwrap_or(OCI_MANIFEST).to_owned(),
            digest: format!("sha256:{}", super::sha256(&bytes)),
            bytes: bytes.into(),
            blobs,
            children,
            subject: value["subject"]["digest"].as_str().map(str::to_owned),
            value,
        }
    }

    /// An image for one platform, whose layers hold one file each, named by `name`.
    pub fn image(name: &str, architecture: &str, layers: usize) -> Self {
        let layers = (0..layers)
            .map(|number| {
                let text = format!("{name} for {architecture}, layer {number}\n").repeat(200);
                tgz(&[(&format!("opt/{name}/{number}"), text.as_bytes())])
            })
            .collect::<Vec<_>>();
        Self::of_layers(name, architecture, &layers)
    }

    /// An OCI image of these compressed layers.
    pub fn of_layers(name: &str, architecture: &str, layers: &[Vec<u8>]) -> Self {
        let config = config(name, architecture, layers);
        let blobs = layers.iter().map(|layer| Blob::new(layer.clone())).collect::<Vec<_>>();
        let described = blobs.iter().map(|blob| blob.descriptor(OCI_LAYER)).collect::<Vec<_>>();
        let value = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(OCI_CONFIG),
            "layers": described,
        });
        Self::new(value, std::iter::once(config).chain(blobs).collect(), Vec::new())
    }

    /// This image with Docker's media types.
    pub fn docker_image(name: &str, architecture: &str) -> Self {
        let layers = [tgz(&[(&format!("opt/{name}"), name.as_bytes())])];
        let config = config(name, architecture, &layers);
        let layer = Blob::new(layers[0].clone());
        let value = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": config.descriptor(DOCKER_CONFIG),
            "layers": [layer.descriptor(DOCKER_LAYER)],
        });
        Self::new(value, vec![config, layer], Vec::new())
    }

    /// An image of layers that are no real archives.
    pub fn of_blobs(name: &str, layers: Vec<Blob>) -> Self {
        let config = Blob::new(format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"x\":\"{name}\"}}"
        ));
        let described = layers.iter().map(|blob| blob.descriptor(OCI_LAYER)).collect::<Vec<_>>();
        let value = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(OCI_CONFIG),
            "layers": described,
        });
        Self::new(value, std::iter::once(config).chain(layers).collect(), Vec::new())
    }

    /// An index (`OCI_INDEX` or `DOCKER_LIST`) of images, with the architecture of each.
    pub fn index(kind: &str, images: &[(&str, &Manifest)]) -> Self {
        let described = images
            .iter()
            .map(|(architecture, image)| {
                let mut descriptor = image.descriptor();
                descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
                descriptor
            })
            .collect::<Vec<_>>();
        let value = json!({"schemaVersion": 2, "mediaType": kind, "manifests": described});
        let children = images.iter().map(|(_, image)| (*image).clone()).collect();
        Self::new(value, Vec::new(), children)
    }

    /// An image for two platforms.
    pub fn two_platforms(name: &str) -> Self {
        let (amd, arm) = (Self::image(name, "amd64", 3), Self::image(name, "arm64", 2));
        Self::index(OCI_INDEX, &[("amd64", &amd), ("arm64", &arm)])
    }

    /// An artifact with one file, which may refer to another manifest.
    pub fn artifact(kind: &str, content: &str, subject: Option<&Manifest>) -> Self {
        let (empty, file) = (Blob::new("{}"), Blob::new(content));
        let mut layer = file.descriptor(kind);
        layer["annotations"] = json!({"org.opencontainers.image.title": "file.txt"});
        let mut value = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": empty.descriptor(OCI_EMPTY),
            "layers": [layer],
        });
        if let Some(subject) = subject {
            value["subject"] = subject.descriptor();
        }
        Self::new(value, vec![empty, file], Vec::new())
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": self.digest, "size": self.bytes.len()})
    }

    /// The image of an index for one architecture.
    #[track_caller]
    pub fn of(&self, architecture: &str) -> &Manifest {
        let rows = self.value["manifests"].as_array().expect("an index");
        let found = rows
            .iter()
            .position(|row| row["platform"]["architecture"] == architecture);
        &self.children[found.unwrap_or_else(|| panic!("nothing for {architecture}"))]
    }

    /// This and all manifests below it.
    pub fn all(&self) -> Vec<&Manifest> {
        std::iter::once(self)
            .chain(self.children.iter().flat_map(Manifest::all))
            .collect()
    }
}

fn config(name: &str, architecture: &str, layers: &[Vec<u8>]) -> Blob {
    let diffs = layers
        .iter()
        .map(|layer| format!("sha256:{}", super::sha256(&gunzip(layer))))
        .collect::<Vec<_>>();
    let value = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2024-01-02T03:04:05Z",
        "config": {"Labels": {"name": name}},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    });
    Blob::new(value.to_string())
}
