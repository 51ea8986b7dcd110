//! The command line, as the configuration takes it.

use std::collections::HashMap;
use std::path::PathBuf;

use super::model::Secret;

/// What was given on the command line. Variables are not among it: they come with the [`super::Environment`].
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--listen`, once for each address.
    pub listen: Vec<String>,
    /// `--remotes`
    pub remotes: Option<PathBuf>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--conf`
    pub conf: Option<PathBuf>,
    /// `--public-url`
    pub public_url: Option<String>,
    /// By package type, what its [`super::DefaultRemote`] flag says.
    pub default_remotes: HashMap<&'static str, String>,
    /// `--admin-token`
    pub admin_token: Option<Secret>,
    /// `--node-url`
    pub node_url: Option<String>,
    /// `--node-secret`
    pub node_secret: Option<Secret>,
}
