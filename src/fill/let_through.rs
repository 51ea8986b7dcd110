//! Artifacts that people let through though their remote holds them back: kept in the catalogue, known here without asking it.
//!
//! The catalogue's list is read at the start, and where other nodes write to it, every few seconds. While it is away, what was
//! read last counts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::Fills;
use crate::cache::Millis;
use crate::catalog::{Catalog, CatalogError, LetThrough, MOST_LET_THROUGH};
use crate::config::{Config, Remote};
use crate::formats::hold::{Dates, Free, Verdict};
use crate::formats::path::PathError;
use crate::formats::{self, Asset, path};
use crate::policy::quarantine;
use crate::state::State;

/// How often it is looked whether there is another configuration, and whether the catalogue was read at all.
const LOOKED_EVERY: Duration = Duration::from_secs(1);
/// How often the list is read again that other nodes write to.
const READ_EVERY: Duration = Duration::from_secs(2);
/// How long reading it may take.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// What is let through, of all remotes.
#[derive(Default)]
pub struct LetThroughs {
    all: ArcSwap<All>,
    /// Held by who changes it.
    changing: Mutex<()>,
}

#[derive(Default)]
struct All {
    /// `None`: the catalogue was not read yet.
    list: Option<Vec<LetThrough>>,
    /// Of the configuration by which the rest was made.
    generation: u64,
    by_remote: HashMap<String, Arc<OfRemote>>,
}

/// What is let through of one remote.
#[derive(Debug, Default)]
pub struct OfRemote {
    /// Another one for what is not the same, also after a restart; 0 for nothing.
    pub number: u64,
    artifacts: Vec<(LetThrough, Option<Asset>)>,
    paths: HashSet<String>,
    /// What indexes call the files, by package and by index.
    by_package: HashMap<String, Arc<HashSet<String>>>,
    by_index: HashMap<String, Arc<HashSet<String>>>,
}

/// The artifact that an operator, or the catalogue, names by `text`: a path below `remote` as in a URL, with its query.
/// `None`: no artifact has this path.
///
/// # Errors
/// Those of [`path::parse`].
pub fn named(remote: &Arc<Remote>, text: &str) -> Result<Option<Asset>, PathError> {
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    Ok(formats::asset(remote, path::parse(path.as_bytes(), query)?, None))
}

/// Whether both are one artifact, or go together as a file and its metadata do.
fn is_same(a: &Asset, b: &Asset) -> bool {
    a.key().text == b.key().text || a.listed_by.is_some() && a.listed_by == b.listed_by && a.package == b.package
}

impl OfRemote {
    fn new(remote: &Arc<Remote>, list: &[LetThrough]) -> Self {
        let mut made = OfRemote::default();
        let mut by_package: HashMap<String, HashSet<String>> = HashMap::new();
        let mut by_index: HashMap<String, HashSet<String>> = HashMap::new();
        let mut digest = Sha256::new();
        let mut list: Vec<&LetThrough> = list.iter().filter(|artifact| artifact.remote == remote.name).collect();
        list.sort_by(|a, b| a.path.cmp(&b.path));
        for artifact in list {
            digest.update(&artifact.path);
            digest.update([0]);
            let asset = named(remote, &artifact.path).ok().flatten();
            if let Some(asset) = &asset
                && let Some(by) = &asset.listed_by
            {
                if let Some(package) = &asset.package {
                    let files = by_package.entry(package.clone()).or_default();
                    files.insert(by.file.clone());
                }
                for index in &by.indexes {
                    let files = by_index.entry(index.clone()).or_default();
                    files.insert(by.file.clone());
                }
            }
            made.paths.insert(artifact.path.clone());
            made.artifacts.push((artifact.clone(), asset));
        }
        if !made.artifacts.is_empty() {
            let digest = digest.finalize();
            let number = digest.iter().take(8);
            made.number = number.fold(0, |number, byte| number << 8 | u64::from(*byte)).max(1);
        }
        let shared = |files: HashMap<String, HashSet<String>>| {
            let shared = files.into_iter().map(|(name, files)| (name, Arc::new(files)));
            shared.collect()
        };
        (made.by_package, made.by_index) = (shared(by_package), shared(by_index));
        made
    }

    /// What `index` calls the files that are let through, for [`formats::hold::Known`].
    pub fn files(&self, index: &Asset) -> Arc<HashSet<String>> {
        let of_package = index.package.as_ref().and_then(|package| self.by_package.get(package));
        let files = of_package.or_else(|| self.by_index.get(&index.path.encoded));
        files.map(Arc::clone).unwrap_or_default()
    }

    fn contains(&self, asset: &Asset) -> bool {
        if self.number == 0 {
            return false;
        }
        let is_listed = asset.listed_by.as_ref().is_some_and(|by| match &asset.package {
            Some(package) => self
                .by_package
                .get(package)
                .is_some_and(|files| files.contains(&by.file)),
            None => by.indexes.iter().any(|index| {
                let files = self.by_index.get(index);
                files.is_some_and(|files| files.contains(&by.file))
            }),
        });
        is_listed || self.paths.contains(asset.key().parts().path)
    }

    /// Who let `asset` through, and why: all that was said of it and of what goes with it.
    fn found(&self, asset: &Asset) -> Vec<LetThrough> {
        let key = asset.key();
        let fits = |(artifact, other): &&(LetThrough, Option<Asset>)| {
            artifact.path == key.parts().path || other.as_ref().is_some_and(|other| is_same(asset, other))
        };
        let found = self.artifacts.iter().filter(fits);
        found.map(|(artifact, _)| artifact.clone()).collect()
    }

    /// The latest of them.
    pub fn latest(&self, asset: &Asset) -> Option<LetThrough> {
        self.found(asset).into_iter().max_by_key(|artifact| artifact.at)
    }
}

impl All {
    fn new(list: Option<Vec<LetThrough>>, config: &Config) -> Self {
        let mut by_remote = HashMap::new();
        let names: HashSet<&str> = list.iter().flatten().map(|artifact| artifact.remote.as_str()).collect();
        for name in names {
            if let Some(remote) = config.remotes.get(name) {
                let of_remote = OfRemote::new(remote, list.as_deref().unwrap_or_default());
                by_remote.insert(name.to_owned(), Arc::new(of_remote));
            }
        }
        All {
            list,
            generation: config.generation,
            by_remote,
        }
    }
}

impl LetThroughs {
    /// What is let through of a remote.
    pub fn of(&self, remote: &str) -> Arc<OfRemote> {
        let all = self.all.load();
        all.by_remote.get(remote).map(Arc::clone).unwrap_or_default()
    }

    /// [`OfRemote::number`] of a remote.
    pub fn number(&self, remote: &str) -> u64 {
        let all = self.all.load();
        match all.by_remote.is_empty() {
            true => 0,
            false => all.by_remote.get(remote).map_or(0, |of| of.number),
        }
    }

    /// All of it, as this node knows it. `None`: it does not yet.
    pub fn list(&self) -> Option<Vec<LetThrough>> {
        self.all.load().list.clone()
    }

    /// Reads the catalogue's list.
    ///
    /// # Errors
    /// The catalogue does not answer in time; what was read last counts on.
    pub async fn read(&self, catalog: &Catalog, config: &Config) -> Result<(), CatalogError> {
        let _changing = self.changing.lock().await;
        let list = listed(catalog).await?;
        let known = self.all.load();
        if known.list.as_ref() != Some(&list) || known.generation != config.generation {
            self.all.store(Arc::new(All::new(Some(list), config)));
        }
        Ok(())
    }

    /// Lets an artifact through, in place of what was said of it under the same path. `false`: as many are already as can be.
    ///
    /// # Errors
    /// The catalogue does not answer in time.
    pub async fn add(&self, catalog: &Catalog, config: &Config, artifact: LetThrough) -> Result<bool, CatalogError> {
        let _changing = self.changing.lock().await;
        let mut list = listed(catalog).await?;
        list.retain(|other| (&other.remote, &other.path) != (&artifact.remote, &artifact.path));
        if list.len() >= MOST_LET_THROUGH {
            return Ok(false);
        }
        catalog.keep_let_through(artifact.clone()).await?;
        list.insert(0, artifact);
        self.all.store(Arc::new(All::new(Some(list), config)));
        Ok(true)
    }

    /// Takes back that `asset` is let through, by whichever spelling, and says what was taken back.
    ///
    /// # Errors
    /// The catalogue does not answer in time.
    pub async fn remove(
        &self,
        catalog: &Catalog,
        config: &Config,
        asset: &Asset,
    ) -> Result<Vec<LetThrough>, CatalogError> {
        let _changing = self.changing.lock().await;
        let mut list = listed(catalog).await?;
        let removed = OfRemote::new(&asset.remote, &list).found(asset);
        if !removed.is_empty() {
            let paths = removed.iter().map(|artifact| artifact.path.clone()).collect();
            catalog.forget_let_through(&asset.remote.name, paths).await?;
            list.retain(|artifact| !removed.contains(artifact));
        }
        self.all.store(Arc::new(All::new(Some(list), config)));
        Ok(removed)
    }

    /// Makes all anew where the configuration is another one.
    async fn adopt(&self, config: &Config) {
        let _changing = self.changing.lock().await;
        let known = self.all.load_full();
        if known.generation != config.generation {
            self.all.store(Arc::new(All::new(known.list.clone(), config)));
        }
    }
}

/// # Errors
/// The catalogue does not answer in time.
async fn listed(catalog: &Catalog) -> Result<Vec<LetThrough>, CatalogError> {
    let read = tokio::time::timeout(READ_LIMIT, catalog.let_through()).await;
    read.unwrap_or(Err(CatalogError::Busy("what is let through is still being read")))
}

/// Keeps up with the configuration, and with what other nodes write to the catalogue. For ever.
pub async fn keep_reading(fills: Arc<Fills>, state: Arc<State>) {
    let mut read = Instant::now();
    let mut is_away = false;
    loop {
        tokio::time::sleep(LOOKED_EVERY).await;
        let config = state.config();
        let held = &fills.let_through;
        held.adopt(&config).await;
        let is_unread = held.all.load().list.is_none();
        let is_due = fills.catalog.is_shared() && read.elapsed() >= READ_EVERY;
        let holds_anything = || config.remotes.values().any(|remote| remote.quarantine.is_on());
        let is_needed = is_unread || is_due && holds_anything();
        if !is_needed {
            continue;
        }
        read = Instant::now();
        match held.read(&fills.catalog, &config).await {
            Ok(()) => is_away = false,
            Err(error) if !is_away => {
                tracing::warn!(%error, "which artifacts are let through cannot be read: what was read last counts");
                is_away = true;
            }
            Err(_) => {}
        }
    }
}

impl Fills {
    /// What the policy says of an artifact at `now`, and whether somebody lets it through.
    pub fn judge(&self, asset: &Asset, dates: Dates, now: Millis) -> Verdict {
        let verdict = quarantine::judge(asset, dates, now);
        match verdict.is_held() && self.let_through.of(&asset.remote.name).contains(asset) {
            true => Verdict::Free(Free::LetThrough),
            false => verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::testing;

    fn remote(package: &str) -> Arc<Remote> {
        let mut remote = testing::remote(package, "https://upstream.example/");
        remote.quarantine.days = Some(3);
        Arc::new(remote)
    }

    fn entry(remote: &Remote, path: &str, at: i64) -> LetThrough {
        LetThrough {
            remote: remote.name.clone(),
            path: path.to_owned(),
            reason: "read".to_owned(),
            by: String::new(),
            at,
        }
    }

    fn asset(remote: &Arc<Remote>, path: &str) -> Asset {
        named(remote, path).unwrap().unwrap()
    }

    #[test]
    fn what_goes_together_is_let_through_together() {
        let pypi = remote("pypi");
        let list = [entry(&pypi, "packages/ab/demo-2.0-py3-none-any.whl", 1)];
        let through = OfRemote::new(&pypi, &list);
        for path in [
            "packages/ab/demo-2.0-py3-none-any.whl",
            "/packages//ab/%64emo-2.0-py3-none-any.whl",
            "packages/ab/demo-2.0-py3-none-any.whl.metadata",
            "packages/ab/demo-2.0-py3-none-any.whl.asc",
        ] {
            assert!(through.contains(&asset(&pypi, path)), "{path}");
            assert_eq!(through.latest(&asset(&pypi, path)).as_ref(), Some(&list[0]));
        }
        for path in [
            "packages/ab/demo-2.1-py3-none-any.whl",
            "packages/ab/demo_x-2.0.tar.gz",
            "simple/demo/",
        ] {
            assert!(!through.contains(&asset(&pypi, path)), "{path}");
        }
        for index in ["simple/demo/", "pypi/demo/json"] {
            let files = through.files(&asset(&pypi, index));
            assert!(files.contains("demo-2.0-py3-none-any.whl"), "{index}");
        }
        assert!(through.files(&asset(&pypi, "simple/other/")).is_empty());
    }

    #[test]
    fn scopes_part_tarballs_of_one_name() {
        let npm = remote("npm");
        let through = OfRemote::new(&npm, &[entry(&npm, "@a/six/-/six-1.0.0.tgz", 1)]);
        assert!(through.contains(&asset(&npm, "@a/six/-/six-1.0.0.tgz")));
        for other in ["@b/six/-/six-1.0.0.tgz", "six/-/six-1.0.0.tgz"] {
            assert!(!through.contains(&asset(&npm, other)), "{other}");
        }
        assert!(through.files(&asset(&npm, "@a%2fsix")).contains("six-1.0.0.tgz"));
        assert!(through.files(&asset(&npm, "six")).is_empty());
    }

    #[test]
    fn an_index_of_all_packages_names_what_is_let_through() {
        let helm = remote("helm");
        let through = OfRemote::new(&helm, &[entry(&helm, "charts/demo-1.0.0.tgz", 1)]);
        assert!(through.contains(&asset(&helm, "charts/demo-1.0.0.tgz.prov")));
        for index in ["index.yaml", "charts/index.yaml"] {
            assert!(
                through.files(&asset(&helm, index)).contains("demo-1.0.0.tgz"),
                "{index}"
            );
        }
        assert!(through.files(&asset(&helm, "other/index.yaml")).is_empty());
    }

    #[test]
    fn a_set_has_its_number_in_any_order_and_another_set_another() {
        let files = remote("generic");
        let number = |paths: &[&str]| {
            let list: Vec<LetThrough> = paths.iter().map(|path| entry(&files, path, 1)).collect();
            OfRemote::new(&files, &list).number
        };
        assert_eq!(number(&[]), 0);
        assert_eq!(number(&["a", "b"]), number(&["b", "a"]));
        let numbers = [&["a"][..], &["b"], &["a", "b"], &["ab"]].map(number);
        let distinct: HashSet<u64> = numbers.into_iter().chain([0]).collect();
        assert_eq!(distinct.len(), 5);
    }

    #[test]
    fn of_several_entries_the_latest_tells_why() {
        let files = remote("generic");
        let list = [
            entry(&files, "a?b=1", 1),
            entry(&files, "a?b=2", 2),
            entry(&files, "%zz", 3),
        ];
        let through = OfRemote::new(&files, &list);
        assert!(through.contains(&asset(&files, "a?b=1")));
        assert!(!through.contains(&asset(&files, "a")));
        assert_eq!(through.latest(&asset(&files, "a?b=2")), Some(list[1].clone()));
    }
}
