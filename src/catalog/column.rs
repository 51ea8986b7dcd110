//! Values as they stand in the columns of a database, whichever it is.

use super::record::Class;

/// The number of a class.
pub(super) fn class_number(class: Class) -> i64 {
    match class {
        Class::Immutable => 0,
        Class::Mutable => 1,
    }
}

/// The integers of databases are signed: what is too large becomes the largest.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
