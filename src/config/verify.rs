//! `verify` of a remote: whether its files are compared with the digests that its indexes name.

use super::problem::Fault;
use super::values::choice;

/// What becomes of a file that is not what its index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Nobody looks.
    Off,
    /// The file is kept and served; that is counted and logged.
    Warn,
    /// The file is never kept, nor served to its end; that is counted and logged.
    #[default]
    Enforce,
}

/// All of them, as they are written.
const NAMES: [(&str, Verify); 3] = [
    ("off", Verify::Off),
    ("warn", Verify::Warn),
    ("enforce", Verify::Enforce),
];

impl Verify {
    pub(super) fn read(text: &str) -> Result<Verify, Fault> {
        choice(text, &NAMES)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Verify::Off => "off",
            Verify::Warn => "warn",
            Verify::Enforce => "enforce",
        }
    }
}
