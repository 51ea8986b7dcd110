//! Images by their references: what a pull of them asks for, from the tag to the layers.

use serde_json::Value;

use super::{EVERY, FORMS, is_name, is_tag, names};
use crate::cache::Expected;
use crate::config::Remote;
use crate::formats::order::{Field, Given, Holds, Step, Term};

/// `image: library/alpine:3.20`, and of which platforms.
pub(super) const IMAGE: Term = Term {
    field: Field {
        name: "image",
        flag: "image",
        value: "REF",
        help: "An image: NAME[:TAG][@DIGEST], below the remote",
        holds: Holds::Text,
    },
    refined_by: &[Field {
        name: "platforms",
        flag: "platform",
        value: "OS/ARCH[/VARIANT]",
        help: "Of an image, only for this platform; repeatable (default: all)",
        holds: Holds::Texts,
    }],
    read: |remote, given| {
        let (name, reference) = parse(remote, given.text("image").unwrap_or_default())?;
        let platforms = platforms(given)?;
        Ok(vec![manifest(&name, reference, platforms, MAX_DEPTH)])
    },
};

/// Indexes of indexes that are followed.
const MAX_DEPTH: usize = 3;

/// The name of an image and its tag or digest.
fn parse(remote: &Remote, image: &str) -> Result<(String, String), String> {
    let wrong = |why: &str| format!("`image` {image:?} {why}");
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // A colon before a slash is that of a port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let name = match name.split_once('/') {
        Some((host, name)) if names::is_called(remote, host) => name,
        _ => name,
    };
    if !is_name(name) {
        return Err(wrong(
            "has no name as registries have them: lower case, without the host",
        ));
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(wrong("has a tag that is none"));
    }
    if digest.is_some_and(|digest| Expected::parse(digest).is_none()) {
        return Err(wrong("has a digest that is none"));
    }
    let reference = digest.or(tag).unwrap_or("latest");
    Ok((name.to_owned(), reference.to_owned()))
}

/// A platform, as image-spec's `image-index.md` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

fn platforms(given: &Given<'_>) -> Result<Vec<Platform>, String> {
    let each = given.texts("platforms").into_iter().map(|text| {
        let mut parts = text.split('/').filter(|part| !part.is_empty()).map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) => Ok(Platform {
                os,
                architecture,
                variant,
            }),
            _ => Err(format!("`platforms`: {text:?} is no OS/ARCH or OS/ARCH/VARIANT")),
        }
    });
    each.collect()
}

impl Platform {
    /// Whether a manifest for `described` is wanted. arm64 has one variant, which is often left out.
    fn fits(&self, described: &Value) -> bool {
        let says = |name: &str| described[name].as_str();
        let variant = match &self.variant {
            None => true,
            Some(variant) => {
                says("variant").map_or(self.architecture == "arm64" && variant == "v8", |said| said == variant)
            }
        };
        says("os") == Some(&self.os) && says("architecture") == Some(&self.architecture) && variant
    }
}

fn shown(described: &Value) -> String {
    let parts = ["os", "architecture", "variant"]
        .iter()
        .filter_map(|name| described[*name].as_str());
    parts.collect::<Vec<_>>().join("/")
}

fn manifest(name: &str, reference: String, platforms: Vec<Platform>, depth: usize) -> Step {
    let path = format!("{name}/manifests/{reference}");
    let name = name.to_owned();
    Step::document(path, FORMS[EVERY].accept, move |body| {
        named(&name, body, &platforms, depth)
    })
}

/// What a manifest names: those of the platforms, or configuration and layers.
fn named(name: &str, body: &[u8], platforms: &[Platform], depth: usize) -> Result<Vec<Step>, String> {
    let read: Value = serde_json::from_slice(body).map_err(|error| format!("the manifest is no JSON: {error}"))?;
    let digest = |descriptor: &Value| match descriptor["digest"].as_str() {
        Some(digest) if Expected::parse(digest).is_some() => Ok(digest.to_owned()),
        _ => Err("the manifest names something by no digest".to_owned()),
    };
    if let Some(manifests) = read["manifests"].as_array() {
        if depth == 0 {
            return Err("there are too many indexes in one another".to_owned());
        }
        let fits = |described: &Value| platforms.iter().any(|platform| platform.fits(described));
        let is_wanted = |entry: &&Value| platforms.is_empty() || fits(&entry["platform"]);
        let missing = platforms.iter().find(|platform| {
            let mut described = manifests.iter().map(|entry| &entry["platform"]);
            !described.any(|described| platform.fits(described))
        });
        if let Some(Platform {
            os,
            architecture,
            variant,
        }) = missing
        {
            let variant = variant.as_ref().map_or(String::new(), |variant| format!("/{variant}"));
            let there: Vec<String> = manifests.iter().map(|entry| shown(&entry["platform"])).collect();
            let there = there.join(", ");
            return Err(format!(
                "the image has nothing for {os}/{architecture}{variant}; it has {there}"
            ));
        }
        let wanted = manifests.iter().filter(is_wanted);
        return wanted
            .map(|entry| Ok(manifest(name, digest(entry)?, Vec::new(), depth - 1)))
            .collect();
    }
    // What is distributed elsewhere, by its own words, is no registry's to give (image-spec, "Non-distributable layers").
    let is_here = |layer: &&Value| {
        let kind = layer["mediaType"].as_str().unwrap_or_default();
        !kind.contains("nondistributable") && !kind.contains(".foreign.")
    };
    let layers = read["layers"].as_array().into_iter().flatten().filter(is_here);
    let config = Some(&read["config"]).filter(|config| !config.is_null());
    let files = config.into_iter().chain(layers);
    files
        .map(|file| Ok(Step::file(format!("{name}/blobs/{}", digest(file)?))))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::formats::docker::HUB;
    use crate::formats::order;
    use crate::formats::testing::remote;

    fn steps(order: Value) -> Result<Vec<Step>, String> {
        let remote = remote("docker", &format!("https://{}/", HUB[2]));
        order::read(&remote, &[IMAGE], order.as_object().unwrap())
    }

    fn digest(letter: &str) -> String {
        format!("sha256:{}", letter.repeat(64))
    }

    #[test]
    fn references_are_read() {
        let digest = digest("a");
        for (image, path) in [
            ("alpine", "alpine/manifests/latest"),
            ("library/alpine:3.20", "library/alpine/manifests/3.20"),
            (
                &format!("{}/library/alpine:3.20", HUB[0]),
                "library/alpine/manifests/3.20",
            ),
            (&format!("a/b:1@{digest}"), &format!("a/b/manifests/{digest}")),
        ] {
            let steps = steps(json!({"image": image})).unwrap();
            assert_eq!((steps.len(), steps[0].path.as_str()), (1, path), "{image}");
            assert!(steps[0].accept.unwrap().contains("image.index"));
        }
        for image in [
            "",
            ":1",
            "UP:1",
            "a:b c",
            "a@sha256:1",
            "other.example:5000/a:1",
            "a:.1",
        ] {
            assert!(steps(json!({"image": image})).is_err(), "{image}");
        }
        for platform in ["linux", "linux/arm/v7/x", ""] {
            assert!(
                steps(json!({"image": "a", "platforms": [platform]})).is_err(),
                "{platform}"
            );
        }
    }

    #[test]
    fn an_index_leads_to_the_manifests_of_the_platforms_and_those_to_blobs() {
        let entry = |letter: &str, platform: Value| json!({"digest": digest(letter), "platform": platform});
        let index = json!({"manifests": [
            entry("a", json!({"os": "linux", "architecture": "amd64"})),
            entry("b", json!({"os": "linux", "architecture": "arm64"})),
            entry("c", json!({"os": "linux", "architecture": "arm", "variant": "v6"})),
            entry("d", json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
            entry("e", json!({"os": "unknown", "architecture": "unknown"})),
        ]})
        .to_string();
        let wanted = |platforms: &[&str]| {
            let mut steps = steps(json!({"image": "a:1", "platforms": platforms})).unwrap();
            let then = steps.remove(0).then.unwrap();
            then(index.as_bytes()).map(|steps| {
                let letters = steps
                    .iter()
                    .map(|step| step.path.strip_prefix("a/manifests/sha256:").unwrap()[..1].to_owned());
                letters.collect::<String>()
            })
        };
        assert_eq!(wanted(&[]).unwrap(), "abcde");
        assert_eq!(wanted(&["linux/amd64"]).unwrap(), "a");
        assert_eq!(wanted(&["linux/arm", "linux/arm64/v8"]).unwrap(), "bcd");
        assert_eq!(wanted(&["linux/arm/v7"]).unwrap(), "d");
        let error = wanted(&["linux/amd64", "windows/amd64"]).unwrap_err();
        assert!(
            error.contains("nothing for windows/amd64; it has linux/amd64, linux/arm64"),
            "{error}"
        );
        let image = json!({"config": {"digest": digest("f")}, "layers": [
            {"digest": digest("0")},
            {"digest": digest("1"), "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        ]})
        .to_string();
        let mut steps = steps(json!({"image": "a:1"})).unwrap();
        let files = steps.remove(0).then.unwrap()(image.as_bytes()).unwrap();
        let paths: Vec<String> = files.into_iter().map(|step| step.path).collect();
        assert_eq!(
            paths,
            [digest("f"), digest("0")].map(|digest| format!("a/blobs/{digest}"))
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(image in "\\PC{0,40}", body in "[{}\\[\\]\":a-z,/]{0,80}") {
            if let Ok(mut steps) = steps(json!({"image": image})) {
                let _ = steps.remove(0).then.unwrap()(body.as_bytes());
            }
        }
    }
}
