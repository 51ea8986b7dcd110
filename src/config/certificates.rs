//! Certificates and keys in PEM files, read when the configuration is: what would keep a connection from being made is
//! found by `check`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::model::{RemoteTls, Tls};
use super::problem::{Fault, Pos};
use super::section::Section;
use super::settings;

const RELATIVE: &str = "the path is relative to the file that names it";

/// The certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(&error))?;
    if certificates.is_empty() {
        return Err(Fault::new("holds no certificate in PEM form"));
    }
    for certificate in &certificates {
        X509Certificate::from_der(certificate).map_err(|_| Fault::new("holds a certificate that cannot be read"))?;
    }
    Ok(certificates)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Fault> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => Fault::new("holds no private key in PEM form")
            .hint("an encrypted key cannot be used: decrypt it, and let nobody else read the file"),
        error => unreadable(&error),
    })
}

fn unreadable(error: &pem::Error) -> Fault {
    match error {
        pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            Fault::new(format!("cannot be read: {error}")).hint(RELATIVE)
        }
        pem::Error::Io(error) => Fault::new(format!("cannot be read: {error}")),
        // What the file holds is not repeated: it may be a key.
        _ => Fault::new("is no PEM file that can be read"),
    }
}

/// What is wrong with the time of a certificate, if anything is.
fn out_of_date(certificate: &CertificateDer<'_>) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let now = i64::try_from(now).ok()?;
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let validity = parsed.validity();
    if validity.not_after.timestamp() < now {
        return Some(format!("expired at {}", validity.not_after));
    }
    let is_early = validity.not_before.timestamp() > now;
    is_early.then(|| format!("is not valid before {}", validity.not_before))
}

/// The two files of `section`, made into one by `pair`. Both are needed, or neither is.
fn pair<T>(
    section: &Section<'_>,
    at: Pos,
    name: &str,
    pair: impl FnOnce(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) -> Result<T, rustls::Error>,
) -> Option<(PathBuf, PathBuf, T)> {
    let cx = section.cx;
    for (present, missing) in [("cert", "key"), ("key", "cert")] {
        if section.entry(present).is_some() && section.entry(missing).is_none() {
            let fault = Fault::new(format!("`{name}.{missing}` is missing"));
            cx.error(
                at,
                fault.hint("`cert` and `key` need each other: {cert: FILE, key: FILE}"),
            );
        }
    }
    let file = |key| section.parse(key, |text| Ok(cx.resolve(text)));
    let chain = section.parse("cert", |text| certificates(&cx.resolve(text)));
    let secret = section.parse("key", |text| key(&cx.resolve(text)));
    let (chain, secret) = (chain?, secret?);
    if let (Some(when), Some(entry)) = (out_of_date(&chain[0]), section.entry("cert")) {
        let fault = Fault::new(format!("the certificate in `{name}.cert` {when}"));
        cx.warn(
            entry.value.at,
            fault.hint("whom it is shown to will refuse it: renew it"),
        );
    }
    match pair(chain, secret) {
        Ok(made) => Some((file("cert")?, file("key")?, made)),
        Err(error) => {
            let fault = match error {
                rustls::Error::InconsistentKeys(_) => Fault::new(format!(
                    "`{name}.key` is not the key of the certificate in `{name}.cert`"
                ))
                .hint("the first certificate of the file must be the server's own, the others follow"),
                error => Fault::new(format!("`{name}.cert` and `{name}.key` cannot be used: {error}")),
            };
            cx.error(at, fault);
            None
        }
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
}

/// Reads `tls:` of the settings.
pub(super) fn of_listeners(top: &Section<'_>) -> Option<Tls> {
    let entry = top.entry("tls")?;
    let section = top.section("tls", &["listen", "cert", "key"])?;
    if section.entry("cert").is_none() && section.entry("key").is_none() && entry.value.is_map() {
        let fault = Fault::new("`tls` names no certificate");
        top.cx.error(
            entry.at,
            fault.hint("write {cert: FILE, key: FILE}, or leave `tls` out"),
        );
    }
    let listen = settings::listen(&section);
    let (cert, key, certified) = pair(&section, entry.at, "tls", certified)?;
    Some(Tls {
        listen,
        cert,
        key,
        certified: Arc::new(certified),
    })
}

/// Reads `tls:` of a remote.
pub(super) fn of_remote(section: &Section<'_>) -> RemoteTls {
    let (Some(entry), Some(tls)) = (section.entry("tls"), section.section("tls", &["ca", "cert", "key"])) else {
        return RemoteTls::default();
    };
    let cx = section.cx;
    let roots = tls.parse("ca", |text| {
        let own = certificates(&cx.resolve(text))?;
        let mut store = RootCertStore::empty();
        for certificate in &own {
            store
                .add(certificate.clone())
                .map_err(|error| Fault::new(format!("holds a certificate that cannot be trusted: {error}")))?;
        }
        let system = SYSTEM.iter().filter_map(|certificate| wrapped(certificate));
        let roots: Option<Vec<WrappedX509>> = own.iter().map(wrapped).collect();
        let roots = roots.ok_or_else(|| Fault::new("holds a certificate that cannot be read"))?;
        let all: Arc<CaType> = roots.into_iter().chain(system).collect::<Vec<_>>().into();
        Ok((cx.resolve(text), own, all))
    });
    let (ca, own, roots) = match roots {
        Some((ca, own, all)) => (Some(ca), own, Some(all)),
        None => (None, Vec::new(), None),
    };
    let identity = pair(&tls, entry.at, "tls", |chain, key| {
        certified(chain.clone(), key.clone_key())?;
        // Pingora takes the key so, and panics at what it cannot take.
        let unusable = |reason: &str| rustls::Error::General(reason.to_owned());
        PrivateKeyDer::try_from(key.secret_der()).map_err(unusable)?;
        let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
        Ok(CertKey::new(chain, key.secret_der().to_vec()))
    });
    let (cert, key, identity) = match identity {
        Some((cert, key, identity)) => (Some(cert), Some(key), Some(Arc::new(identity))),
        None => (None, None, None),
    };
    RemoteTls {
        ca,
        own_roots: own.into_iter().map(|certificate| certificate.to_vec()).collect(),
        roots,
        cert,
        key,
        identity,
    }
}

/// What the system trusts, and can be trusted here: with an unusable one no connection would be made.
static SYSTEM: LazyLock<Vec<CertificateDer<'static>>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs().certs;
    let is_usable = |certificate: &CertificateDer<'static>| RootCertStore::empty().add(certificate.clone()).is_ok();
    found.into_iter().filter(is_usable).collect()
});

fn wrapped(certificate: &CertificateDer<'_>) -> Option<WrappedX509> {
    // `parse_x509` panics at what is none.
    X509Certificate::from_der(certificate).ok()?;
    Some(WrappedX509::new(certificate.to_vec(), parse_x509))
}

impl fmt::Debug for RemoteTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteTls")
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .finish_non_exhaustive()
    }
}
