//! The validated configuration: plain data that every other module reads. Nothing here reads a file, the environment
//! or a clock; [`super::load`] builds it and a reload replaces it whole.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use indexmap::IndexMap;
use ipnet::IpNet;
use url::Url;

use super::pattern::Pattern;

/// One immutable, validated snapshot of everything that was configured. A request takes one at its start and keeps it
/// to its end, so that a reload never mixes two configurations in one answer.
#[derive(Debug)]
pub struct Config {
    /// Counts successful loads in this process, from 1.
    pub generation: u64,
    pub settings: Settings,
    /// In the order of `remotes.yaml`.
    pub remotes: IndexMap<String, Arc<Remote>>,
    /// Lower-case host name without port, to the remote that is served at that host's root (`hosts`).
    pub hosts: HashMap<String, Arc<Remote>>,
    /// How values that took something from the environment stand in the file, by remote and key: what may be shown of
    /// them, since the environment's part may be a secret.
    pub interpolated: HashMap<(String, String), String>,
}

/// Runtime settings: flag over variable over `conf/artifactapi.yaml` over default.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: Vec<SocketAddr>,
    /// Without trailing slash; may have a path, which only prefixes links.
    pub public_url: Option<Url>,
    pub data_dir: PathBuf,
    pub remotes_file: PathBuf,
    /// Peers whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Name servers; empty means the system's.
    pub resolver: Vec<SocketAddr>,
    pub tls: Option<Tls>,
    pub cache: CacheSettings,
    pub upstream: UpstreamSettings,
    /// The remote that is asked for images whose name begins with none (`docker.default_remote`).
    pub docker_default_remote: Option<String>,
    /// Proxies from `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
    pub outbound: OutboundProxies,
    pub admin_token: Option<Secret>,
    pub database: Option<Database>,
    pub redis_url: Option<Secret>,
    pub s3: Option<S3>,
    pub node_url: Option<Url>,
    pub node_secret: Option<Secret>,
}

/// Certificate and key files of the listeners.
#[derive(Debug, Clone)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct CacheSettings {
    /// Bound of the disk tier in bytes, growing files included.
    pub disk_bytes: u64,
    /// Free space of the file system that is never used.
    pub disk_min_free: MinFree,
    /// Bound of the memory tier in bytes.
    pub memory_bytes: u64,
    /// fsync a body before its fill is admitted.
    pub sync: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MinFree {
    Bytes(u64),
    /// Of the file system's size, 0 to 100.
    Percent(f64),
}

#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    pub timeouts: Timeouts,
    /// Upstream fetches under way at once; further ones queue.
    pub max_concurrent: usize,
}

/// Limits on idleness, never on the whole of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS, for each address tried.
    pub connect: Duration,
    /// From the request sent to the response header.
    pub first_byte: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
}

#[derive(Debug, Clone, Default)]
pub struct OutboundProxies {
    pub http: Option<ProxyUrl>,
    pub https: Option<ProxyUrl>,
    pub no_proxy: Vec<String>,
}

/// An HTTP proxy for outgoing requests: `http://[user:password@]host[:port]`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ProxyUrl {
    pub host: String,
    pub port: u16,
    /// `user:password`, percent-decoded.
    pub credentials: Option<Secret>,
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let auth = if self.credentials.is_some() { "***@" } else { "" };
        write!(f, "http://{auth}{}:{}", self.host, self.port)
    }
}

#[derive(Debug, Clone)]
pub struct Database {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Option<Secret>,
    pub name: String,
    pub tls: DatabaseTls,
}

/// Whether and how connections to PostgreSQL are encrypted: libpq's `PGSSLMODE` and `PGSSLROOTCERT`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatabaseTls {
    pub mode: TlsMode,
    /// Certificates that the server's is held against; `None` means the system's.
    pub root_certificates: Option<PathBuf>,
}

/// libpq's `sslmode`, but for `allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsMode {
    Disable,
    /// TLS if the server has it, whoever the server is.
    #[default]
    Prefer,
    /// TLS, whoever the server is.
    Require,
    /// The server's certificate must be signed by whom is trusted.
    VerifyCa,
    /// It must name the host besides.
    VerifyFull,
}

impl TlsMode {
    pub const ALL: [TlsMode; 5] = [
        TlsMode::Disable,
        TlsMode::Prefer,
        TlsMode::Require,
        TlsMode::VerifyCa,
        TlsMode::VerifyFull,
    ];

    /// As in `PGSSLMODE`.
    pub fn name(self) -> &'static str {
        match self {
            TlsMode::Disable => "disable",
            TlsMode::Prefer => "prefer",
            TlsMode::Require => "require",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        }
    }
}

#[derive(Debug, Clone)]
pub struct S3 {
    /// With scheme.
    pub endpoint: Url,
    pub access_key: Secret,
    pub secret_key: Secret,
    pub bucket: String,
    /// From `AWS_REGION`; `None`: by the endpoint's name, else `us-east-1`.
    pub region: Option<String>,
}

/// A text that must never be shown: `Debug` and `Display` print `***`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }
    /// The text itself, to be handed to what needs it and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `package:` of a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Package {
    Generic,
    Alpine,
    Rpm,
    Docker,
    Pypi,
    Npm,
    Helm,
}

impl Package {
    pub const ALL: [Package; 7] = [
        Package::Generic,
        Package::Alpine,
        Package::Rpm,
        Package::Docker,
        Package::Pypi,
        Package::Npm,
        Package::Helm,
    ];

    /// As written in `remotes.yaml`.
    pub fn name(self) -> &'static str {
        match self {
            Package::Generic => "generic",
            Package::Alpine => "alpine",
            Package::Rpm => "rpm",
            Package::Docker => "docker",
            Package::Pypi => "pypi",
            Package::Npm => "npm",
            Package::Helm => "helm",
        }
    }
}

/// `type:` of a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteType {
    Remote,
    Local,
}

/// One entry of `remotes.yaml`.
#[derive(Debug)]
pub struct Remote {
    pub name: String,
    pub kind: RemoteType,
    pub package: Package,
    pub description: String,
    /// `None` exactly for `type: local`. The path ends in `/`.
    pub base_url: Option<Url>,
    /// pypi: what stands before `/simple/…`; its path ends in `/`.
    pub index_url: Option<Url>,
    pub credentials: Option<Credentials>,
    /// Sent where the credentials are.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub credentials_within: CredentialsWithin,
    /// `None` when the key is absent or null: everything is allowed. `[]` matches nothing.
    pub immutable_patterns: Option<Vec<Pattern>>,
    pub mutable_patterns: Vec<Pattern>,
    /// Conditional request on expiry, for paths that `mutable_patterns` match.
    pub check_mutable_updates: bool,
    /// Lower case, without port.
    pub hosts: Vec<String>,
    pub file_hosts: Vec<FileHost>,
    /// docker: further hosts whose token service may see the credentials; https, or on this machine.
    pub token_realms: Vec<FileHost>,
    /// This remote's own outbound proxy.
    pub proxy: Option<ProxyUrl>,
    pub offline: bool,
    /// Upstream statuses that count as unreachable.
    pub serve_stale_on: Vec<u16>,
    /// `Some(days)` with `quarantine_new: true`.
    pub quarantine_days: Option<u32>,
    /// A client's `no-cache` and `max-age=0` revalidate here.
    pub client_revalidation: bool,
    /// npm: what `dist.tarball` names.
    pub tarball_urls: TarballUrls,
    pub ttl: Ttls,
    pub timeouts: Timeouts,
}

#[derive(Debug, Clone)]
pub struct Credentials {
    pub username: String,
    pub password: Password,
}

/// Where the credentials and headers of a remote may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CredentialsWithin {
    /// To every path of its own host: some registries keep their files beside their index.
    Host,
    /// To what is below `base_url` only: others share that host.
    BaseUrl,
}

/// Where a password comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Password {
    Fixed(Secret),
    /// What a program writes, which renews it by itself (`password_command`).
    Command(PasswordCommand),
}

/// A program and its arguments; what it writes to its standard output, trimmed, is the password.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PasswordCommand {
    pub argv: Vec<String>,
    /// It is run again after this.
    pub ttl: Duration,
}

/// One entry of `file_hosts`: a host that an index of this remote may point to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileHost {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Lower case; an IPv6 address has its brackets.
    pub host: String,
    /// `None`: the scheme's default.
    pub port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarballUrls {
    Rewrite,
    Upstream,
}

/// How long what is stored stays fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttls {
    /// Zero means for ever.
    pub immutable: Duration,
    /// Zero means expired at once.
    pub mutable: Duration,
    /// For 404, 410 and 451.
    pub negative: Duration,
}
