//! Errors of PostgreSQL, for people.

use std::error::Error as _;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// What went wrong, and what may help. The server's messages name users and databases, never passwords.
pub(super) fn describe(error: &Error) -> String {
    let Some(answer) = error.as_db_error() else {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        return text;
    };
    let hint = match *answer.code() {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => "; see DBUSER and DBPASS",
        SqlState::INVALID_CATALOG_NAME => "; create it, or name another in DBNAME",
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "; DBUSER must be allowed to create a schema in the database, or to use a schema `artifactapi` and create \
             tables there (CREATE SCHEMA artifactapi AUTHORIZATION …)"
        }
        _ => "",
    };
    format!("{}{hint} (SQLSTATE {})", answer.message(), answer.code().code())
}
