//! A document that says a part of what another one does, and is answered from that one as clients get it: what is held back there
//! is not found here.

/// Where a document is answered from.
#[derive(Debug, Clone)]
pub struct Excerpt {
    /// The decoded path of the document that has all of it.
    pub whole: String,
    /// What is wanted of it.
    pub wanted: String,
    /// Looks for that in the whole document. Pure.
    pub find: fn(&[u8], &str) -> Found,
}

/// What the whole document says of what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// This, in JSON.
    Document(String),
    /// The document is of a release that may be held back: what its file is called there.
    Restricted { file: String },
    /// Nothing.
    Nothing,
}
