//! Objects: what is stored, complete or growing, and the tiers that hold it.
//!
//! Everything that is served is an [`Object`] and every client is a [`Reader`] of one; readers cannot tell a complete
//! object from a growing one. The [`Store`] finds objects by [`Key`] in memory, among those that grow, and on disk;
//! [`Writer`] makes one grow. [`storage`] offers the same to Pingora's cache state machine.

mod clock;
mod described;
mod digests;
mod disk;
mod evict;
mod expected;
mod freshness;
mod head;
mod kept;
mod key;
mod memory;
mod object;
mod overflow;
mod read;
mod reader;
mod scrub;
pub mod storage;
mod store;
mod sweep;
mod time;
mod usage;
mod writer;

pub use described::Described;
pub use digests::{Algorithm, Digester};
pub use disk::in_folder;
pub use expected::{Expected, Verifier, Verify, Vouched, Wrong};
pub use freshness::{
    Adoption, Class, FOR_EVER, Freshness, Left, adoption, code as class_code, decode as class_of, distrust, is_before,
    until as freshness_until, was_before,
};
pub use head::{Finished, Head, Referent, identity};
pub use kept::{Incoming, Kept};
pub use key::{Aside, Bound, Hash, Key, Parts, parse_hash};
pub use object::{Body, Elsewhere, Object, Origin, Prepared, Progress, Stage};
pub use overflow::bound as bound_overflow;
pub use reader::{ReadError, Reader};
pub use scrub::{Verified, verify};
pub use store::{Backup, NoSpace, Observer, Store, StoreStats, Stored, Walked};
pub use sweep::{Sweep, Swept};
pub use time::{Millis, now_ms, set_clock};
pub use writer::{Finish, Writer};
