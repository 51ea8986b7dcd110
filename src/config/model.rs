//! The validated configuration: plain data that every other module reads. Nothing here reads a file, the environment
//! or a clock; [`super::load`] builds it and a reload replaces it whole.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use indexmap::IndexMap;
use ipnet::IpNet;
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::CertKey;
use rustls::sign::CertifiedKey;
use url::Url;

use super::package::{Holds, OwnKey, Package};
use super::pattern::{PackagePattern, Pattern};
use super::quarantine::Quarantine;
use super::tokens::Tokens;
use super::verify::Verify;
use crate::headers::{Keep, Names};
use crate::metrics::SeriesSlot;

/// One immutable, validated snapshot of everything that was configured. A request takes one at its start and keeps it
/// to its end, so that a reload never mixes two configurations in one answer.
#[derive(Debug)]
pub struct Config {
    /// Counts successful loads in this process, from 1.
    pub generation: u64,
    /// The package types that remotes may be of.
    pub packages: Vec<&'static Package>,
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
    /// What is in flight when a signal stops the service has this long.
    pub stop_timeout: Duration,
    pub access_log: LogTarget,
    pub tls: Option<Tls>,
    pub cache: CacheSettings,
    pub clients: ClientSettings,
    pub upstream: UpstreamSettings,
    /// By package type, the remote that is asked where clients name none (`{package}.default_remote`).
    pub default_remotes: BTreeMap<&'static str, String>,
    /// Proxies from `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
    pub outbound: OutboundProxies,
    pub admin_token: Option<Secret>,
    /// Who is known by which secret, the administrator included.
    pub tokens: Tokens,
    /// Everybody may write, as in the service before this one.
    pub open_writes: bool,
    pub database: Option<Database>,
    pub redis_url: Option<Secret>,
    pub s3: Option<S3>,
    pub node_url: Option<Url>,
    pub node_secret: Option<Secret>,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogTarget {
    #[default]
    Off,
    Stdout,
    File(PathBuf),
}

/// What HTTPS is spoken with.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Where; `None`: at all addresses that are listened on.
    pub listen: Option<Vec<SocketAddr>>,
    pub cert: PathBuf,
    pub key: PathBuf,
    /// What these files held.
    pub certified: Arc<CertifiedKey>,
}

/// What a remote is asked with over TLS. The server's certificate is verified in any case.
#[derive(Default)]
pub struct RemoteTls {
    /// Who is trusted besides those whom the system trusts.
    pub ca: Option<PathBuf>,
    /// What that file held, in DER.
    pub own_roots: Vec<Vec<u8>>,
    /// Those roots and the system's; `None`: the system's alone.
    pub roots: Option<Arc<CaType>>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// What is shown to servers that may see the credentials, should they ask.
    pub identity: Option<Arc<CertKey>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CacheSettings {
    /// Bound of the disk tier in bytes, growing files included.
    pub disk_bytes: u64,
    /// Free space of the file system that is never used.
    pub disk_min_free: MinFree,
    /// Bound of the memory tier in bytes.
    pub memory_bytes: u64,
    /// fsync a body before its fill is admitted.
    pub sync: bool,
    /// Bytes a second that are read to compare what is stored with its digests; 0: none.
    pub scrub_rate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MinFree {
    Bytes(u64),
    /// Of the file system's size, 0 to 100.
    Percent(f64),
}

/// What one client may hold, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSettings {
    /// Connections at once.
    pub connections: usize,
    /// Of these, from one address that is no trusted proxy.
    pub connections_per_address: usize,
    /// From the first byte of a request to the end of its head.
    pub head_timeout: Duration,
    /// The longest head of a request, in bytes.
    pub head_bytes: usize,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// For a request's body, beside the time that it takes at `body_rate`, and for any pause in it.
    pub body_timeout: Duration,
    /// Bytes per second.
    pub body_rate: u64,
    /// For a client to take one piece of a body.
    pub write_timeout: Duration,
    /// Streams of one HTTP/2 connection at once.
    pub http2_streams: u32,
    /// HTTP/2 streams of all connections that wait for their clients to read.
    pub http2_unread: usize,
}

impl Default for ClientSettings {
    fn default() -> Self {
        ClientSettings {
            connections: 20_000,
            connections_per_address: 2000,
            head_timeout: Duration::from_secs(60),
            head_bytes: 64 << 10,
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(60),
            body_rate: 1000,
            write_timeout: Duration::from_secs(480),
            http2_streams: 100,
            http2_unread: 1000,
        }
    }
}

impl ClientSettings {
    /// Until when a body may go on that had time until `until`, now that `arrived` more bytes are here. What came fast may
    /// not stop for longer than what has just begun.
    pub fn body_until(&self, until: Instant, arrived: usize) -> Instant {
        let latest = Instant::now() + self.body_timeout;
        let earned = Duration::from_nanos((arrived as u64).saturating_mul(1_000_000_000) / self.body_rate.max(1));
        until.checked_add(earned).map_or(latest, |until| until.min(latest))
    }
}

#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    pub timeouts: Timeouts,
    /// Upstream fetches under way at once; further ones queue.
    pub max_concurrent: usize,
    /// How many of them may be one remote's.
    pub max_per_remote: usize,
}

/// Limits on what upstream may be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS, for each address tried.
    pub connect: Duration,
    /// From the request sent to the response header.
    pub first_byte: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// Bytes a second that a body comes at, at least; 0: no matter how slowly.
    pub least_rate: u64,
    /// What the rate is measured over.
    pub rate_window: Duration,
    /// For a body as a whole.
    pub whole: Duration,
}

/// How much upstream is asked for one remote, at most. What comes faster waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    pub requests_per_second: Option<NonZeroU32>,
    /// Of bodies.
    pub bytes_per_second: Option<NonZeroU64>,
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
    /// The certificate must name the host besides.
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

    /// The word in `PGSSLMODE`.
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
    pub package: &'static Package,
    pub description: String,
    /// `None` exactly for `type: local`. The path ends in `/`.
    pub base_url: Option<Url>,
    pub credentials: Option<Credentials>,
    /// Sent where the credentials are.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub credentials_within: CredentialsWithin,
    /// Upstream's header fields that clients get besides those that describe content.
    pub headers_keep: Vec<HeaderName>,
    /// The fields that package types add to those that describe content, the same for all remotes.
    pub known_headers: Arc<[Names]>,
    /// Under the names of its own (`hosts`), what this remote has may run in browsers.
    pub active_content: bool,
    /// What it has is read only with a token.
    pub protected: bool,
    /// The only packages that upstream is asked for. `None` when the key is absent or null: all are. `[]` matches nothing.
    pub allow_packages: Option<Vec<PackagePattern>>,
    /// Packages that upstream is never asked for, whatever is allowed.
    pub deny_packages: Vec<PackagePattern>,
    /// `None` when the key is absent or null: everything is allowed. `[]` matches nothing.
    pub immutable_patterns: Option<Vec<Pattern>>,
    pub mutable_patterns: Vec<Pattern>,
    /// Conditional request on expiry, for paths that `mutable_patterns` match.
    pub check_mutable_updates: bool,
    /// Lower case, without port.
    pub hosts: Vec<String>,
    pub file_hosts: Vec<FileHost>,
    /// The hosts of all these; that of `base_url` comes first.
    pub own_hosts: Vec<OwnHost>,
    /// This remote's own outbound proxy.
    pub proxy: Option<ProxyUrl>,
    pub tls: RemoteTls,
    pub offline: bool,
    /// Upstream statuses that count as unreachable.
    pub serve_stale_on: Vec<u16>,
    /// What is held back.
    pub quarantine: Quarantine,
    /// Whether files are compared with the digests that indexes name.
    pub verify: Verify,
    /// An immutable path that upstream has other content for than before is refused, not only reported.
    pub refuses_changes: bool,
    /// A client's `no-cache` and `max-age=0` revalidate here.
    pub client_revalidation: bool,
    /// What a local remote takes.
    pub uploads: Uploads,
    /// What stands under the keys that only some package types have.
    pub own: OwnKeys,
    pub ttl: Ttls,
    /// What is mutable and asked for shortly before its TTL passes is fetched anew behind the answer.
    pub refresh_ahead: bool,
    pub timeouts: Timeouts,
    pub caps: Caps,
    /// What is counted of it.
    pub series: SeriesSlot,
}

impl Remote {
    /// Which of upstream's header fields clients get.
    pub fn keep(&self) -> Keep<'_> {
        Keep {
            known: &self.known_headers,
            listed: &self.headers_keep,
        }
    }

    /// `base_url`, and the other URLs of servers that belong to the remote as that does.
    pub fn urls(&self) -> impl Iterator<Item = &Url> {
        self.base_url.iter().chain(self.own.urls())
    }
}

/// What a local remote takes of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploads {
    /// A file may take another one's place.
    pub overwrite: bool,
    /// The longest file, in bytes.
    pub longest: Option<u64>,
    /// All files together, in bytes.
    pub quota: Option<u64>,
}

/// A host that a remote names, and whether it is private. That is found out when the configuration is loaded, and kept: who
/// answers for the name later cannot change it.
#[derive(Debug)]
pub struct OwnHost {
    /// Lower case, an IPv6 address without its brackets.
    pub name: String,
    /// Empty as long as its addresses are not known.
    pub is_private: OnceLock<bool>,
}

impl OwnHost {
    /// `host` as it stands in a URL.
    pub fn new(host: &str) -> Self {
        OwnHost {
            name: Self::name_of(host),
            is_private: OnceLock::new(),
        }
    }

    /// `host`, as it stands in a URL, as its name here.
    pub fn name_of(host: &str) -> String {
        host.trim_matches(['[', ']']).to_ascii_lowercase()
    }
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
    /// The program is run again after this.
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

impl FileHost {
    /// The root of the host; `None` if it is none that a URL can have.
    pub fn url(&self) -> Option<Url> {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        Url::parse(&format!("{}://{}{port}/", self.scheme, self.host)).ok()
    }
}

/// What a remote says under the keys that only some package types have.
#[derive(Debug, Clone, Default)]
pub struct OwnKeys(Vec<(&'static str, OwnValue)>);

/// The value of an [`OwnKey`].
#[derive(Debug, Clone)]
pub enum OwnValue {
    /// Of [`Holds::Url`].
    Url(Url),
    /// Of [`Holds::TokenRealms`].
    TokenRealms(Vec<FileHost>),
    /// Of [`Holds::Word`].
    Word(&'static str),
}

impl OwnKeys {
    /// Sets what `key` holds.
    pub(crate) fn set(&mut self, key: &'static OwnKey, value: OwnValue) {
        self.0.retain(|(name, _)| *name != key.name);
        self.0.push((key.name, value));
    }

    fn get(&self, key: &OwnKey) -> Option<&OwnValue> {
        self.0
            .iter()
            .find(|(name, _)| *name == key.name)
            .map(|(_, value)| value)
    }

    /// The URL under a key of [`Holds::Url`], be it implied.
    pub fn url(&self, key: &OwnKey) -> Option<&Url> {
        match self.get(key) {
            Some(OwnValue::Url(url)) => Some(url),
            _ => None,
        }
    }

    /// The word under a key of [`Holds::Word`].
    pub fn word(&self, key: &OwnKey) -> &'static str {
        match (self.get(key), key.holds) {
            (Some(OwnValue::Word(word)), _) | (_, Holds::Word([word, ..])) => word,
            _ => "",
        }
    }

    /// All URLs among them.
    pub(super) fn urls(&self) -> impl Iterator<Item = &Url> {
        self.0.iter().filter_map(|(_, value)| match value {
            OwnValue::Url(url) => Some(url),
            _ => None,
        })
    }

    /// The further hosts whose token service may see the credentials.
    pub fn token_realms(&self) -> &[FileHost] {
        let mut realms = self.0.iter().filter_map(|(_, value)| match value {
            OwnValue::TokenRealms(hosts) => Some(hosts.as_slice()),
            _ => None,
        });
        realms.next().unwrap_or_default()
    }
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
