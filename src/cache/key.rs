//! What an object is stored under. Keys are built and taken apart here alone; their bytes stand on disk, in the bucket, in
//! Redis and in the catalogue, and stay as they are.

use std::sync::Arc;

use hex::FromHex;

use crate::exact_url::shown_path;

/// Stands between the parts; no part has one.
const SEPARATOR: char = '\0';
/// The form of what was uploaded here. No package type has one of this name: a remote may change its type, and its files stay.
const LOCAL: &str = "local";
/// Begins the form of what is fetched beside its place.
const ASIDE: char = '~';

/// The hash that names an object in every tier.
pub type Hash = [u8; 16];

/// The name of an object in every tier: remote, path with query, and form, framed so that no two of them collide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `remote NUL path?query NUL form`.
    pub text: Arc<str>,
    pub hash: Hash,
}

/// The parts of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Empty: it is a view's.
    pub remote: &'a str,
    /// Encoded, with the query.
    pub path: &'a str,
    /// Which of several documents under one path; empty where there is only one.
    pub form: &'a str,
}

/// How a file of a fixed name is bound to its manifest: the two are stored so that neither is found with another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound<'a> {
    /// By the checksum that the manifest names.
    To(&'a str),
    /// By the manifest's own digest, where it names none.
    With(&'a str),
}

/// Why something is fetched beside its place: nobody finds it by its own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aside {
    /// Its files, or its digest, are verified first.
    Arriving,
    /// Only upstream's header is wanted.
    Asking,
    /// The body came in a coding that its digest does not count.
    Coded,
    /// What is missing of a body that broke off.
    Rest,
}

impl<'a> Parts<'a> {
    /// Those of a key's text. A text that was never a key's has empty parts.
    pub fn of(text: &'a str) -> Self {
        let mut parts = text.splitn(3, SEPARATOR);
        let mut next = || parts.next().unwrap_or("");
        Parts {
            remote: next(),
            path: next(),
            form: next(),
        }
    }

    /// Whether the object was uploaded: it is never flushed, whatever is configured by now.
    pub fn is_local(&self) -> bool {
        self.form == LOCAL
    }

    /// Whether the object is a view, which each node writes for itself.
    pub fn is_view(&self) -> bool {
        self.remote.is_empty()
    }
}

impl Key {
    /// A document of `remote`; `path` in its canonical encoded spelling, so that it cannot hold a NUL.
    pub fn new(remote: &str, path: &str, query: Option<&str>, form: &str) -> Self {
        let length = remote.len() + path.len() + form.len() + 3 + query.map_or(0, str::len);
        let mut text = String::with_capacity(length);
        text.push_str(remote);
        text.push(SEPARATOR);
        text.push_str(path);
        if let Some(query) = query {
            text.push('?');
            text.push_str(query);
        }
        text.push(SEPARATOR);
        text.push_str(form);
        Key::from_text(&text)
    }

    /// A file that was uploaded to `remote`.
    pub fn of_local(remote: &str, path: &str) -> Self {
        Key::new(remote, path, None, LOCAL)
    }

    /// A file of a fixed name.
    pub fn bound(remote: &str, path: &str, to: Bound<'_>) -> Self {
        let form = match to {
            Bound::To(checksum) => format!("is {checksum}"),
            Bound::With(manifest) => format!("with {manifest}"),
        };
        Key::new(remote, path, None, &form)
    }

    /// The view of the original with this id, in this spelling of its links and this coding. No remote has this key.
    pub fn of_view(original: u64, links: &str, coding: &str) -> Self {
        let path = format!("view/{}/{links}", hex::encode(original.to_be_bytes()));
        Key::new("", &path, None, coding)
    }

    /// What is fetched beside the place of this key.
    pub fn aside(&self, why: Aside) -> Self {
        let why = match why {
            Aside::Arriving => "arriving",
            Aside::Asking => "asking",
            Aside::Coded => "coded",
            Aside::Rest => "rest",
        };
        let Parts { remote, path, form } = self.parts();
        Key::new(remote, path, None, &format!("{ASIDE}{why} {form}"))
    }

    /// The key of a text that comes from elsewhere. `None`: it is no key's.
    pub fn read(text: &str) -> Option<Self> {
        let separators = text.matches(SEPARATOR).count();
        (separators == 2).then(|| Key::from_text(text))
    }

    /// The key of this text, which was a key's once.
    pub fn from_text(text: &str) -> Self {
        Key {
            hash: pingora_cache::key::hash_key(text),
            text: text.into(),
        }
    }

    pub fn parts(&self) -> Parts<'_> {
        Parts::of(&self.text)
    }

    /// Whether other nodes and the bucket may have the object: not a view, and not what only waits to be verified.
    pub fn is_shared(&self) -> bool {
        let parts = self.parts();
        !parts.is_view() && !parts.form.starts_with(ASIDE)
    }

    /// For logs and errors.
    pub fn shown(&self) -> String {
        let Parts { remote, path, form } = self.parts();
        format!("{remote} {} {form}", shown_path(path)).trim().to_owned()
    }
}

/// The hash that a text is the hexadecimal form of.
pub fn parse_hash(text: &str) -> Option<Hash> {
    Hash::from_hex(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::{option, prop_assert_eq};

    use super::*;

    #[test]
    fn keys_are_spelled_as_every_version_spells_them() {
        let key = Key::new("pypi", "simple/six/", Some("a=1"), "json");
        assert_eq!(&*key.text, "pypi\0simple/six/?a=1\0json");
        assert!(key.is_shared());
        assert_eq!(key.shown(), "pypi simple/six/?… json");
        assert_eq!(
            &*Key::bound("rpm", "repodata/a", Bound::To("ab")).text,
            "rpm\0repodata/a\0is ab"
        );
        assert_eq!(
            &*Key::bound("rpm", "repodata/a", Bound::With("cd")).text,
            "rpm\0repodata/a\0with cd"
        );
        let view = Key::of_view(258, "relative", "gzip");
        assert_eq!(&*view.text, "\0view/0000000000000102/relative\0gzip");
        assert!(view.parts().is_view() && !view.is_shared());
        for why in [Aside::Arriving, Aside::Asking, Aside::Coded, Aside::Rest] {
            let aside = key.aside(why);
            assert!(!aside.is_shared() && aside != key, "{why:?}");
            assert_eq!(aside.parts().path, key.parts().path);
        }
        assert_eq!(Parts::of("nonsense").path, "");
        for text in ["", "a", "a\0b", "a\0b\0c\0d"] {
            assert_eq!(Key::read(text), None, "{text:?}");
        }
    }

    /// Hashes that the version without types for keys wrote: under these names objects lie on disk.
    #[test]
    fn hashes_are_those_of_the_version_before() {
        for (text, hash) in [
            ("files\0dir/app.bin\0", "f11c3ec74fedba2bd945fab4b317c2e9"),
            ("files\0get?file=a/b&rev=2\0", "468bba94d43840e4eb809e270ffc922d"),
            ("pypi\0simple/six/\0", "b2b557a219ba6dd27628bd6a6448beaf"),
            ("pypi\0simple/six/\0json", "470d895188b55f482cdf1e1891bb3095"),
            (
                "pypi\0-/host/files.example/six-1.0.tar.gz\0",
                "577576e84e4dca30e025fc505ee59020",
            ),
            ("npm\0@scope%2Fname\0corgi", "6938d6d7f0e0bf3d8d90cc24d8d333b8"),
            (
                "rpms\0repodata/primary.xml\0is sha256:00ff",
                "5103dab3c2b743f41339b1a58c8bb271",
            ),
            (
                "rpms\0repodata/repomd.xml.asc\0with 00ff",
                "a7ad80eefe464e6a0d56cbc6cf064e85",
            ),
            ("images\0manifests/sha256:00ff\0", "66bb65d10f76198a6160d0eb71107c63"),
            (
                "images\0team/app/manifests/v1\0application/vnd.oci.image.manifest.v1+json",
                "80218b305a67234e9cf3d6dd8054aec9",
            ),
            ("files\0it's!new//a/./..\0", "437af9ef7dfab176baad15f7617345c5"),
        ] {
            assert_eq!(hex::encode(Key::read(text).unwrap().hash), hash, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_put_together_comes_apart(
            remote in "[a-z0-9._-]{1,20}", path in "[ -~&&[^?]]{0,80}", query in option::of("[!-~]{0,20}"), form in "[a-z,/+ ]{0,20}",
        ) {
            let key = Key::new(&remote, &path, query.as_deref(), &form);
            let whole = query.map_or(path.clone(), |query| format!("{path}?{query}"));
            prop_assert_eq!(key.parts(), Parts { remote: &remote, path: &whole, form: &form });
            prop_assert_eq!(Key::read(&key.text), Some(key));
        }
    }
}
