//! Alpine package trees: `{branch}/{repository}/{architecture}/` holds packages and one signed index of them, which must
//! arrive byte for byte. apk 2 reads `APKINDEX.tar.gz`, apk 3 also `Packages.adb`
//! (<https://wiki.alpinelinux.org/wiki/Apk_spec>).

use super::{Class, Format, content_type_by_extension};

/// The format of `package: alpine`.
pub struct Alpine;

impl Format for Alpine {
    fn builtin_class(&self, path: &str) -> Option<Class> {
        // The expressions `APKINDEX\.tar\.gz$` and `Packages\.adb$`, searched as every pattern is.
        (path.ends_with("APKINDEX.tar.gz") || path.ends_with("Packages.adb")).then_some(Class::Mutable)
    }

    fn content_type(&self, path: &str) -> &'static str {
        // An `.apk` here is three gzip members in a row and no Android package: nothing may be tempted to decode it.
        if path.ends_with(".apk") || path.ends_with(".adb") {
            "application/octet-stream"
        } else {
            content_type_by_extension(path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_mutable_and_packages_are_not() {
        for path in [
            "v3.22/main/x86_64/APKINDEX.tar.gz",
            "APKINDEX.tar.gz",
            "edge/main/aarch64/Packages.adb",
        ] {
            assert_eq!(Alpine.builtin_class(path), Some(Class::Mutable), "{path}");
        }
        for path in [
            "v3.22/main/x86_64/a-1-r0.apk",
            "APKINDEX.tar.gz.old",
            "APKINDEXxtarxgz",
            "apkindex.tar.gz",
        ] {
            assert_eq!(Alpine.builtin_class(path), None, "{path}");
        }
    }

    #[test]
    fn content_types() {
        assert_eq!(
            Alpine.content_type("v3/main/x86_64/a-1-r0.apk"),
            "application/octet-stream"
        );
        assert_eq!(
            Alpine.content_type("v3/main/x86_64/APKINDEX.tar.gz"),
            "application/gzip"
        );
    }
}
