//! An index is a document that names files. What it states of them are its *facts*: they are found while it streams through, by
//! the one reading that also rewrites its links.

use super::ViewContext;
use super::asset::Member;

/// What an index states.
///
/// What an index says of a file itself belongs here too, as a variant of its own, once something asks for it: its digest
/// (`hashes`, or the fragment `#sha256=` of a link, for PyPI, `dist.integrity` for npm, `digest` for Helm, `cksum` for cargo) and when
/// it was published (`upload-time`, `time`, `created`, `pubtime`). Most of these stand in the link or in the object that holds
/// it; npm lists the times of all versions apart, and cargo's index has no links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A link to another host or outside `base_url`, which became `-/host/…`: the name of its URL ([`super::links::named`]), or
    /// of all URLs with a prefix ([`super::links::prefixes`]). What such a path may be asked for later.
    Link(String),
    /// A file of a fixed name that changes together with this document.
    Member(Member),
}

/// Why an index cannot be read as its clients read it. The client gets 502 with this text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IndexError(pub String);

/// Reads an index by streaming: bytes in, bytes out, an end. Takes the decoded (identity) document, holds a bounded amount
/// of it.
#[deny(missing_docs)]
pub trait IndexReader: Send {
    /// Takes the next piece and appends to `out` what clients get of it, as far as that is known already.
    ///
    /// # Errors
    /// The document cannot be read as its clients read it.
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError>;
    /// The document is complete: appends the rest.
    ///
    /// # Errors
    /// Those of [`IndexReader::write`].
    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), IndexError>;
    /// What was found since the last call. All that is stated in what was appended to `out` so far has been found.
    fn take_facts(&mut self) -> Vec<Fact>;
    /// Links that should have been rewritten and could not be (unparsable): counted in production.
    fn escaped(&self) -> u64;
}

/// A document that names nothing.
pub(super) struct AsItIs;

impl AsItIs {
    /// Such a reader.
    pub(super) fn reader(_context: &ViewContext<'_>) -> Box<dyn IndexReader> {
        Box::new(AsItIs)
    }
}

impl IndexReader for AsItIs {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError> {
        out.extend_from_slice(chunk);
        Ok(())
    }

    fn end(&mut self, _out: &mut Vec<u8>) -> Result<(), IndexError> {
        Ok(())
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        Vec::new()
    }

    fn escaped(&self) -> u64 {
        0
    }
}
