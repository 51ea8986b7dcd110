//! How an object is called in the bucket: so that a person finds it, and no key is in another one's way.

use crate::cache::{Hash, Key, Parts};

/// Under this everything lies; what else is in the bucket belongs to others.
pub const PREFIX: &str = "artifactapi/";
/// The path is cut here; S3 allows names of 1024 bytes.
const MAX_PATH: usize = 900;
/// Servers that keep objects as files have file names of at most 255 bytes; the last one gets the hash too.
const MAX_SEGMENT: usize = 200;
/// Of what the configuration calls a remote; what remains of 1024 bytes.
const MAX_REMOTE: usize = 80;

/// `artifactapi/{remote}/{path}!{16 hex}`: the path as in the key, and the first half of the key's hash. The hash makes it
/// the key's own, so the rest may be cut and spelled as file systems can bear it: no empty, `.` or `..` segment, which
/// would lead elsewhere, and no `!` but the one before the hash, so that no name is the folder of another.
pub(super) fn of(key: &Key) -> String {
    let Parts { remote, path, .. } = key.parts();
    let mut name = String::with_capacity(PREFIX.len() + remote.len() + path.len() + 20);
    name.push_str(PREFIX);
    push_segment(&mut name, cut(remote, MAX_REMOTE));
    // A slash in a query separates nothing.
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path_end = path.rfind('/').map_or(0, |slash| slash + 1);
    let mut readable = String::with_capacity(path.len() + query.len() + 8);
    for folder in path[..path_end].split_terminator('/') {
        push_segment(&mut readable, folder);
        readable.push('/');
    }
    let mut last = path[path_end..].to_owned();
    if !query.is_empty() {
        last.push('?');
        last.push_str(query);
    }
    if !last.is_empty() {
        push_segment(&mut readable, &last);
    }
    name.push('/');
    name.push_str(cut(&readable, MAX_PATH));
    name.push('!');
    name.push_str(&hex::encode(&key.hash[..8]));
    name
}

/// A name for logs: of a query, which may be a signature, only that there is one.
pub(super) fn shown(object: &str) -> String {
    match object.split_once('?') {
        Some((path, rest)) => format!("{path}?…{}", &rest[rest.rfind('!').unwrap_or(rest.len())..]),
        None => object.to_owned(),
    }
}

/// Where it is tried whether the bucket takes anything at all: no key has this name.
pub(super) const PROBE: &str = "artifactapi/write-probe";

/// The first half of a key's hash, as a name ends with it.
pub(super) fn half(hash: &Hash) -> u64 {
    let mut half = [0; 8];
    half.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(half)
}

/// The half of a hash that the name of an object ends with; `None` where the name is no key's.
pub(super) fn half_in(object: &str) -> Option<u64> {
    let (_, hash) = object.rsplit_once('!')?;
    u64::from_str_radix(hash, 16).ok().filter(|_| hash.len() == 16)
}

fn push_segment(name: &mut String, segment: &str) {
    let start = name.len();
    for c in segment.chars() {
        match c {
            '!' => name.push_str("%21"),
            '/' => name.push_str("%2F"),
            '\\' => name.push_str("%5C"),
            c if c.is_control() => name.push('_'),
            c => name.push(c),
        }
    }
    let end = start + cut(&name[start..], MAX_SEGMENT).len();
    name.truncate(end);
    if matches!(&name[start..], "" | "." | "..") {
        name.truncate(start);
        name.push('_');
    }
}

/// The longest beginning of at most `limit` bytes.
fn cut(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(remote: &str, path: &str, query: Option<&str>) -> String {
        of(&Key::new(remote, path, query, ""))
    }

    #[test]
    fn a_person_finds_it() {
        let key = Key::new("pypi", "simple/six/", None, "json");
        assert_eq!(
            of(&key),
            format!("artifactapi/pypi/simple/six/!{}", hex::encode(&key.hash[..8]))
        );
        let key = Key::new("debian", "pool/a_1.0%2Bdfsg_amd64.deb", None, "");
        let expected = format!(
            "artifactapi/debian/pool/a_1.0%2Bdfsg_amd64.deb!{}",
            hex::encode(&key.hash[..8])
        );
        assert_eq!(of(&key), expected);
        let key = Key::new("r", "get", Some("file=a/b"), "");
        let hash = hex::encode(&key.hash[..8]);
        assert_eq!(of(&key), format!("artifactapi/r/get?file=a%2Fb!{hash}"));
        assert_eq!(shown(&of(&key)), format!("artifactapi/r/get?…!{hash}"));
        assert_eq!(shown(&expected), expected);
        assert_eq!(shown("other/a?b=c"), "other/a?…");
    }

    #[test]
    fn nothing_leads_elsewhere() {
        assert!(name("r", "a", Some("x=/../../b/./..")).starts_with("artifactapi/r/a?x=%2F..%2F..%2Fb%2F.%2F..!"));
        assert!(name("..", "a//../b", None).starts_with("artifactapi/_/a/_/_/b!"));
        assert!(name("r", "it's!new/x", None).starts_with("artifactapi/r/it's%21new/x!"));
        assert!(
            name("r", &format!("{}/x", "y".repeat(300)), None)
                .starts_with(&format!("artifactapi/r/{}/x!", "y".repeat(200)))
        );
    }

    /// Written as by the version that had no types for keys.
    #[test]
    fn names_are_those_of_the_version_before() {
        for (text, object) in [
            ("files\0dir/app.bin\0", "artifactapi/files/dir/app.bin!f11c3ec74fedba2b"),
            (
                "files\0get?file=a/b&rev=2\0",
                "artifactapi/files/get?file=a%2Fb&rev=2!468bba94d43840e4",
            ),
            ("pypi\0simple/six/\0", "artifactapi/pypi/simple/six/!b2b557a219ba6dd2"),
            (
                "pypi\0simple/six/\0json",
                "artifactapi/pypi/simple/six/!470d895188b55f48",
            ),
            (
                "pypi\0-/host/files.example/six-1.0.tar.gz\0",
                "artifactapi/pypi/-/host/files.example/six-1.0.tar.gz!577576e84e4dca30",
            ),
            (
                "npm\0@scope%2Fname\0corgi",
                "artifactapi/npm/@scope%2Fname!6938d6d7f0e0bf3d",
            ),
            (
                "rpms\0repodata/primary.xml\0is sha256:00ff",
                "artifactapi/rpms/repodata/primary.xml!5103dab3c2b743f4",
            ),
            (
                "rpms\0repodata/repomd.xml.asc\0with 00ff",
                "artifactapi/rpms/repodata/repomd.xml.asc!a7ad80eefe464e6a",
            ),
            (
                "images\0manifests/sha256:00ff\0",
                "artifactapi/images/manifests/sha256:00ff!66bb65d10f76198a",
            ),
            (
                "images\0team/app/manifests/v1\0application/vnd.oci.image.manifest.v1+json",
                "artifactapi/images/team/app/manifests/v1!80218b305a67234e",
            ),
            (
                "files\0it's!new//a/./..\0",
                "artifactapi/files/it's%21new/_/a/_/_!437af9ef7dfab176",
            ),
        ] {
            assert_eq!(of(&Key::read(text).unwrap()), object, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_key_has_a_name_of_its_own_that_every_server_can_bear(
            remote in "[^\0]{1,100}", path in "(([a-z./!%]|[^\0?]){0,40}/){0,60}[^\0?]{0,400}", query in proptest::option::of("[^\0]{0,300}"),
        ) {
            let key = Key::new(&remote, &path, query.as_deref(), "");
            let name = of(&key);
            prop_assert!(name.len() <= 1024, "{} bytes", name.len());
            prop_assert!(name.starts_with(PREFIX));
            prop_assert_eq!(name.matches('!').count(), 1);
            prop_assert_eq!(&name[name.len() - 16..], hex::encode(&key.hash[..8]));
            for segment in name.split('/') {
                prop_assert!(!matches!(segment, "" | "." | ".."), "{name}");
                prop_assert!(segment.len() <= 255, "{name}");
            }
        }
    }
}
