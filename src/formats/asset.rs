//! The value that a request for an artifact becomes when it is routed: the path, parsed once, with all that its package type
//! knows of it. It is carried down; nobody asks the path again.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use url::Url;

use super::excerpt::Excerpt;
use super::hold::Named;
use super::links::{self, Style};
use super::release::{FillDates, ListedBy, Releases, Tells, fills_dates};
use super::stand_in::StandIn;
use super::{ArtifactPath, Class, Form, IndexReader, ViewContext, content_type_by_extension};
use crate::cache::{Expected, Key};
use crate::config::{Remote, RemoteType, Verify};

/// An artifact of a remote.
#[derive(Debug, Clone)]
pub struct Asset {
    pub remote: Arc<Remote>,
    pub path: ArtifactPath,
    /// The path whose patterns and quarantine decide (`X.asc` goes as `X` does): decoded, below the host that has it.
    pub governing: String,
    /// The class by nature of the ecosystem; `None` leaves it to the patterns.
    pub nature: Option<Class>,
    /// By nature of the ecosystem, upstream is asked conditionally when a mutable document expires, whatever the configuration
    /// says.
    pub revalidated: bool,
    pub location: Location,
    /// Which of the documents under this path fits the client's `Accept` best.
    pub form: Form,
    /// The path has more than one form, so that answers carry `Vary: Accept`.
    pub varies: bool,
    /// The name by which this client, which accepts no other, knows the type of an HTML document here.
    pub presented_as: Option<&'static str>,
    /// How the document is rewritten before clients see it.
    pub view: Option<View>,
    /// The digest that the path names its content by: such content never changes, and is verified.
    pub digest: Option<Expected>,
    /// The header field in which answers name that digest, or the digest that a pointer stands for.
    pub digest_field: Option<HeaderName>,
    /// The path under which content with a digest is stored, the same for all paths of the remote that name it.
    pub shared_path: Option<String>,
    pub binding: Binding,
    /// A document that says what there is, though it never changes: see [`Asset::is_index`].
    pub lists: bool,
    /// The package that it belongs to, in its ecosystem's normal spelling, if it can be told.
    pub package: Option<String>,
    /// Its version, likewise.
    pub version: Option<String>,
    /// The index that names it and tells when it was published, or by which digest it is known; only where releases are held
    /// back or verified.
    pub listed_by: Option<ListedBy>,
    /// How it tells of the files that it names, if it is such an index.
    pub tells: Option<Tells>,
    /// A list that may come in pages: what is looked at before one is handed on.
    pub pages: Option<CheckPage>,
    /// The document that this one is answered from; none where it is asked for itself.
    pub excerpt: Option<Box<Excerpt>>,
    /// What is answered where upstream does not have this list.
    pub stand_in: Option<Box<StandIn>>,
    /// What upstream's token service has to allow.
    pub token_scope: Option<String>,
    /// `Content-Type` where upstream names none.
    pub media_type: &'static str,
}

/// Where upstream has an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Nowhere: it is uploaded.
    Local,
    /// Query included.
    Upstream(Url),
    /// On another host, if an index names it or the configuration lists the host.
    Foreign(Box<Foreign>),
    /// The path begins as one on another host does, and names none.
    Nowhere,
}

/// A file on another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// What the path may stand for, https first.
    pub urls: [Url; 2],
    /// The names by which an index names the file that governs this one, in the same order.
    pub named: [String; 2],
    /// An index names what such files are below ([`links::LinkMap::map_template`]), none by a link of its own.
    pub is_below_prefix: bool,
    /// The index that would name it: a path below the remote.
    pub index: Option<String>,
}

impl Foreign {
    /// Each name by which an index may have named it, with the URL that it stands for then.
    pub fn names(&self) -> impl Iterator<Item = (String, &Url)> {
        let each = self.named.iter().zip(&self.urls);
        each.flat_map(|(name, url)| {
            let names = match self.is_below_prefix {
                true => links::prefixes(name),
                false => vec![name.clone()],
            };
            names.into_iter().map(move |name| (name, url))
        })
    }
}

/// A document that is rewritten.
#[derive(Clone, Copy)]
pub struct View {
    /// How its links are written: absolute ones make a view for each base URL that clients come by.
    pub style: Style,
    pub reader: fn(&ViewContext<'_>) -> Box<dyn IndexReader>,
    /// How it tells of releases, where those that are held back are left out of it.
    pub releases: Option<&'static Releases>,
    /// How dates get into it that upstream does not tell, where the remote wants them.
    pub dated: Option<&'static FillDates>,
    /// What it becomes where upstream has it in another syntax than clients asked for.
    pub made_as: Option<MadeAs>,
}

/// A document that is made of one in another syntax.
#[derive(Clone, Copy)]
pub struct MadeAs {
    /// `Content-Type` of what is made.
    pub media_type: &'static str,
    /// Whether it is made of a document of this `Content-Type`.
    pub of: fn(&str) -> bool,
}

impl MadeAs {
    /// The type of what is made of a document of `content_type`, if another one is made of it.
    pub fn media_type(self, content_type: &str) -> Option<&'static str> {
        (self.of)(content_type).then_some(self.media_type)
    }
}

impl View {
    /// A document whose links `reader` rewrites.
    pub fn new(style: Style, reader: fn(&ViewContext<'_>) -> Box<dyn IndexReader>) -> Self {
        View {
            style,
            reader,
            releases: None,
            dated: None,
            made_as: None,
        }
    }

    /// This view, less what `remote` holds back, and with dates where it fills them in.
    #[must_use]
    pub fn held_by(self, remote: &Remote, releases: &'static Releases) -> Self {
        let dated = releases.dated.filter(|_| fills_dates(remote));
        View {
            releases: (remote.quarantine.is_on() || dated.is_some()).then_some(releases),
            dated,
            ..self
        }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("style", &self.style)
            .finish_non_exhaustive()
    }
}

/// Reads a manifest to the files of fixed names that it names: takes its decoded path.
pub type ManifestReader = fn(&str) -> Box<dyn IndexReader>;
/// The decoded path that names content with a digest, beside a name that stands for it: takes the name's decoded path and the
/// digest.
pub type Beside = fn(&str, &str) -> Option<String>;

/// Whether the page of a list with this header can be handed on: not if there is a next one that clients could not be told
/// of, because the list would look complete to them. The error says so.
pub type CheckPage = fn(&HeaderMap) -> Result<(), &'static str>;

/// What an artifact is bound to.
#[derive(Debug, Clone)]
pub enum Binding {
    /// Nothing.
    Alone,
    /// A manifest: it names files of fixed names, which must come from one moment with it. Nothing of it is rewritten.
    Manifest(ManifestReader),
    /// A file of a fixed name, which goes with these manifests (decoded paths below the remote); the first that is stored
    /// counts.
    Member(Vec<String>),
    /// A name that stands for content with a digest, another one after a while (a tag).
    Pointer(Beside),
}

/// A file of a fixed name, as its manifest knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Decoded, below the remote.
    pub path: String,
    /// `sha256`, `sha512`; others cannot be verified here.
    pub checksum_type: String,
    /// Lower-case hexadecimal.
    pub checksum: String,
    /// Clients that read the manifest read this as well.
    pub is_read_with_it: bool,
}

impl Asset {
    /// A plain file under `path`, governed by what `governing` makes of its decoded path below the host that has it: that
    /// path itself, or what it begins with.
    pub fn new(remote: &Arc<Remote>, path: ArtifactPath, governing: impl Fn(&str) -> &str) -> Self {
        let (below, is_foreign) = match links::split_foreign(&path.decoded) {
            Some((_, below)) => (below, true),
            None => (path.decoded.as_str(), path.decoded.starts_with(links::HOST_PREFIX)),
        };
        let governing = governing(below).to_owned();
        let location = match (remote.kind, is_foreign) {
            (RemoteType::Local, _) => Location::Local,
            (RemoteType::Remote, false) => Location::Upstream(links::under_base(remote, &path)),
            (RemoteType::Remote, true) => foreign(&path, below.len() - governing.len()),
        };
        Asset {
            remote: Arc::clone(remote),
            governing,
            nature: None,
            revalidated: false,
            location,
            form: Form::ONLY,
            varies: false,
            presented_as: None,
            view: None,
            digest: None,
            digest_field: None,
            shared_path: None,
            binding: Binding::Alone,
            lists: false,
            package: None,
            version: None,
            listed_by: None,
            tells: None,
            pages: None,
            excerpt: None,
            stand_in: None,
            token_scope: None,
            media_type: content_type_by_extension(&path.decoded),
            path,
        }
    }

    /// Names the index of a file on another host, whose encoded path there `index` gets; a file of the remote's own needs
    /// none.
    #[must_use]
    pub fn named_by(mut self, index: impl FnOnce(&str) -> Option<String>) -> Self {
        if let (Location::Foreign(file), Some((_, below))) =
            (&mut self.location, links::split_foreign(&self.path.encoded))
        {
            file.index = index(below);
        }
        self
    }

    /// The index names a file on another host by what it is below, not by a link of its own.
    #[must_use]
    pub fn below_prefix(mut self) -> Self {
        if let Location::Foreign(file) = &mut self.location {
            file.is_below_prefix = true;
        }
        self
    }

    /// Names the index that names it, where releases are held back or verified.
    pub(super) fn list_by(&mut self, by: impl FnOnce(&Asset) -> Option<ListedBy>) {
        if self.remote.quarantine.is_on() || self.remote.verify != Verify::Off {
            self.listed_by = by(self);
        }
    }

    /// The index that tells when it was published, if one does.
    pub fn dated_by(&self) -> Option<&ListedBy> {
        self.listed_by.as_ref().filter(|by| by.tells_dates)
    }

    /// What its path has behind that of the file that governs it, decoded: nothing for that file itself.
    pub fn beside(&self) -> &str {
        let path = self.path.decoded.as_str();
        let below = links::split_foreign(path).map_or(path, |(_, below)| below);
        below.strip_prefix(self.governing.as_str()).unwrap_or_default()
    }

    /// What policies that name packages look at.
    pub fn named(&self) -> Named<'_> {
        Named {
            package: self.package.as_deref(),
            version: self.version.as_deref(),
            file: self.listed_by.as_ref().map_or("", |by| &by.file),
        }
    }

    /// What it is stored under.
    pub fn key(&self) -> Key {
        match &self.shared_path {
            Some(shared) => Key::new(&self.remote.name, shared, None, ""),
            None => Key::new(
                &self.remote.name,
                &self.path.encoded,
                self.path.query.as_deref(),
                self.form.name,
            ),
        }
    }

    /// The key of the name it is asked for by, where several names share what is stored: what upstream refuses, it refuses
    /// by this one.
    pub fn name_key(&self) -> Option<Key> {
        let query = self.path.query.as_deref();
        let name = || Key::new(&self.remote.name, &self.path.encoded, query, "");
        self.shared_path.is_some().then(name)
    }

    /// Whether it says what there is, so that clients find nothing without it.
    pub fn is_index(&self) -> bool {
        self.lists || self.view.is_some()
    }

    /// Whether what upstream answered with this header can be handed on, as far as it is a page of a list.
    ///
    /// # Errors
    /// Why not.
    pub fn check_page(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        self.pages.map_or(Ok(()), |check| check(headers))
    }

    /// Whether it stands for content with a digest.
    pub fn is_pointer(&self) -> bool {
        matches!(self.binding, Binding::Pointer(_))
    }

    /// The content with `digest` that it stands for. `None`: it stands for none, or nothing can be called so.
    pub fn content(&self, digest: &str) -> Option<Asset> {
        let Binding::Pointer(beside) = self.binding else {
            return None;
        };
        let path = beside(&self.path.decoded, digest)?;
        super::asset(&self.remote, super::path::of_decoded(&path).ok()?, None)
    }
}

/// `cut`: the bytes at the end of the path that what governs it does not have. They are ASCII, and the same in both
/// spellings.
fn foreign(path: &ArtifactPath, cut: usize) -> Location {
    let governing = path.encoded.len().checked_sub(cut).and_then(|length| {
        Some(ArtifactPath {
            decoded: String::new(),
            encoded: path.encoded.get(..length)?.to_owned(),
            query: path.query.clone(),
        })
    });
    let named = governing.and_then(|governing| links::candidates(&governing));
    match (links::candidates(path), named) {
        (Some(urls), Some(named)) => Location::Foreign(Box::new(Foreign {
            urls,
            named: named.map(|url| links::named(&url)),
            is_below_prefix: false,
            index: None,
        })),
        _ => Location::Nowhere,
    }
}
