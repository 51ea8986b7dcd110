//! Lists of what refers to an image (distribution-spec, "Listing Referrers").

use bytes::Bytes;
use http::HeaderName;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{INDEX, What, parse};
use crate::formats::ArtifactPath;
use crate::formats::stand_in::{Filter, StandIn};

static FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Of a referrers request: the subject's digest, and the path of the tag that lists referrers where a registry has no API
/// for them (distribution-spec, "Referrers Tag Schema").
fn tag(path: &str) -> Option<String> {
    let (name, What::Referrers(digest)) = parse(path).ok()? else {
        return None;
    };
    let (algorithm, checksum) = digest.split_once(':')?;
    // At most 32 and 64 characters of them.
    let checksum = checksum.get(..64).unwrap_or(checksum);
    Some(format!("{name}/manifests/{algorithm}-{checksum}"))
}

/// What stands in for the list under `path` where a registry has no API for it: the index that the fallback tag names
/// (distribution-spec, "Unavailable Referrers API").
pub(super) fn stand_in(path: &ArtifactPath) -> Option<StandIn> {
    let filter = artifact_type(path.query.as_deref()).map(|wanted| Filter {
        applied: (FILTERS.clone(), "artifactType"),
        wanted,
        keep: filtered,
    });
    Some(StandIn {
        name: "list of referrers",
        media_type: INDEX,
        pointer: tag(&path.decoded)?,
        empty: none,
        filter,
    })
}

/// The list of nothing.
fn none() -> Bytes {
    let empty = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []});
    empty.to_string().into()
}

/// `artifactType=` of a query.
fn artifact_type(query: Option<&str>) -> Option<String> {
    let value = query?.split('&').find_map(|pair| pair.strip_prefix("artifactType="))?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

/// The index with those of its manifests that have this type.
fn filtered(index: &[u8], artifact_type: &str) -> Bytes {
    let Ok(mut index) = serde_json::from_slice::<Value>(index) else {
        return Bytes::copy_from_slice(index);
    };
    if let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut) {
        manifests.retain(|manifest| manifest.get("artifactType").and_then(Value::as_str) == Some(artifact_type));
    }
    index.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_filtered_by_type() {
        let index = br#"{"schemaVersion":2,"manifests":[{"digest":"a","artifactType":"x/y+z"},{"digest":"b"}]}"#;
        let kept: Value = serde_json::from_slice(&filtered(index, "x/y+z")).unwrap();
        assert_eq!(kept["manifests"], json!([{"digest": "a", "artifactType": "x/y+z"}]));
        assert_eq!(kept["schemaVersion"], 2);
        assert_eq!(filtered(b"{", "x"), "{");
        assert_eq!(
            artifact_type(Some("n=1&artifactType=x%2Fy%2Bz")).as_deref(),
            Some("x/y+z")
        );
        assert_eq!(artifact_type(Some("n=1")), None);
    }

    #[test]
    fn the_fallback_tag_of_referrers() {
        let path = |digest: &str| tag(&format!("a/b/referrers/{digest}"));
        assert_eq!(
            path(super::super::tests::DIGEST),
            Some(format!(
                "a/b/manifests/{}",
                super::super::tests::DIGEST.replace(':', "-")
            ))
        );
        let long = path(&format!("sha512:{}", "ab".repeat(64)));
        assert_eq!(long, Some(format!("a/b/manifests/sha512-{}", "ab".repeat(32))));
        assert_eq!(tag("a/tags/list"), None);
    }
}
