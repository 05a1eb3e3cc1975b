//! The page stores that are open: `local`, which is the store itself, and those attached beside it.
//!
//! A branch has one name in all of them, so a command needs to know only the branch. A storage whose disk is missing
//! when the service starts stays attached and says why it can't be used.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use pageserver::{BranchName, Disk, Store, known_names};

use super::descriptors::Descriptors;
use super::memory::{Memory, StorageRecord};
use super::mounts::log_failure;
use super::parent::{Inherited, Parent};
use crate::api::storages::{NewStorage, Options, Storage, StorageName};
use crate::error::{Error, Result};
use crate::store_dir;

/// How long those who work on a storage may take to let go of it, and how often to look.
const LEAVING: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

pub struct Storages {
    local: Arc<Store>,
    descriptors: Arc<Descriptors>,
    memory: Arc<Memory>,
    attached: RwLock<BTreeMap<StorageName, State>>,
    /// Why the upkeep of some does not go on.
    failing: Mutex<BTreeMap<StorageName, String>>,
    /// Held from the first check of a storage that comes or goes until it has.
    changing: Mutex<()>,
    /// Holds the locks when this process dies.
    parent: Arc<Parent>,
}

/// An attached storage, or why it can't be used.
type State = std::result::Result<Arc<Store>, String>;

impl Storages {
    pub fn open(
        local: Arc<Store>,
        descriptors: Arc<Descriptors>,
        memory: Arc<Memory>,
        parent: Arc<Parent>,
        inherited: &mut Inherited,
    ) -> Result<Storages> {
        let storages = Storages {
            local,
            descriptors,
            memory,
            attached: RwLock::default(),
            failing: Mutex::default(),
            changing: Mutex::default(),
            parent,
        };
        storages.keep_lock(&StorageName::local(), &storages.local)?;
        let records = storages.memory.get().storages.clone();
        for (name, record) in records {
            let state = storages
                .reopen(&record, inherited.lock(&name))
                .and_then(|store| storages.refuse_twins(&name, &store).map(|()| store))
                .and_then(|store| storages.keep_lock(&name, &store).map(|()| store))
                .map_err(|error| {
                    tracing::error!("the storage {name} can't be used: {error}");
                    error.message
                });
            storages.attached_mut().insert(name, state);
            storages.share_descriptors();
        }
        Ok(storages)
    }

    /// From here on nobody else gets the store before this service and those after it have ended.
    fn keep_lock(&self, name: &StorageName, store: &Store) -> Result<()> {
        let kept = self.parent.keep_lock(name, store.lock());
        kept.map_err(Error::io("have the store's lock kept"))?;
        log_failure(
            "note whose storage it is",
            store_dir::note_holder(store.dir(), self.local.dir()),
        );
        Ok(())
    }

    pub fn local(&self) -> &Arc<Store> {
        &self.local
    }

    /// Every storage that can be used, `local` first.
    pub fn stores(&self) -> Vec<(StorageName, Arc<Store>)> {
        let attached = self.attached();
        let usable = attached.iter().filter_map(|(name, state)| {
            let store = state.as_ref().ok()?.clone();
            Some((name.clone(), store))
        });
        [(StorageName::local(), self.local.clone())]
            .into_iter()
            .chain(usable)
            .collect()
    }

    pub fn named(&self, name: &StorageName) -> Result<Arc<Store>> {
        if name.is_local() {
            return Ok(self.local.clone());
        }
        match self.attached().get(name) {
            Some(Ok(store)) => Ok(store.clone()),
            Some(Err(why)) => Err(Error::failure(format!("the storage {name} can't be used: {why}"))
                .hint("bring its disk back and let the service look again: `zenith upgrade`")),
            None => Err(self.unknown(name)),
        }
    }

    /// The storage that a branch lies in.
    pub fn of(&self, branch: &BranchName) -> Result<(StorageName, Arc<Store>)> {
        let stores = self.stores();
        let found = stores.iter().find(|(_, store)| store.branch(branch).is_ok());
        found.cloned().ok_or_else(|| {
            if let Some((missing, _)) = self.attached().iter().find(|(_, state)| state.is_err()) {
                return Error::not_found(format!("no branch named {branch}")).hint(format!(
                    "the storage {missing} can't be used, and its branches are not seen: `zenith storage list`"
                ));
            }
            let known = stores.iter().flat_map(|(_, store)| store.branches());
            let error = pageserver::Error::NoBranch {
                name: branch.to_string(),
                known: known.map(|info| info.name.to_string()).collect(),
            };
            error.into()
        })
    }

    pub fn store_of(&self, branch: &BranchName) -> Result<Arc<Store>> {
        self.of(branch).map(|(_, store)| store)
    }

    pub fn attach(&self, name: &StorageName, new: &NewStorage) -> Result<Storage> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let options = new.options.checked(new.kind)?;
        let path = new.options.path()?.to_path_buf();
        let attached = self.memory.get().storages.clone();
        if attached.get(name).is_some_and(|record| record.path == path) && self.named(name).is_ok() {
            return self.set_options(name, options);
        }
        if let Some((other, _)) = attached.iter().find(|(_, record)| record.path == path) {
            return Err(Error::refused(format!("{} is the storage {other}", path.display()))
                .hint("`zenith storage list` shows it"));
        }
        if name.is_local() || attached.contains_key(name) {
            return Err(Error::refused(format!("a storage named {name} exists already")).hint("take another name"));
        }
        let others = attached.values().map(|record| &record.path);
        if let Some(other) = others
            .into_iter()
            .find(|other| path.starts_with(other) || other.starts_with(&path))
        {
            return Err(Error::refused(format!(
                "{} and the storage {} lie in one another",
                path.display(),
                other.display()
            ))
            .hint("give a directory of its own, best on another disk"));
        }
        if path.starts_with(self.local.dir()) {
            return Err(Error::refused(format!("{} lies in the store", path.display()))
                .hint("give a directory outside of it, best on another disk"));
        }
        self.descriptors.check_store(1 + attached.len())?;
        let (store, warning) = self.make_or_open(&path)?;
        self.refuse_twins(name, &store)?;
        self.keep_lock(name, &store)?;
        let record = StorageRecord { path, options };
        self.memory
            .change(|remembered| drop(remembered.storages.insert(name.clone(), record)))
            .inspect_err(|_| self.parent.let_go_of_lock(name))?;
        self.attached_mut().insert(name.clone(), Ok(store));
        self.share_descriptors();
        tracing::info!("storage {name} attached");
        let storage = self.show(name)?;
        Ok(Storage { warning, ..storage })
    }

    /// Who attaches what is attached gives other options.
    fn set_options(&self, name: &StorageName, options: Options) -> Result<Storage> {
        self.memory.change(|remembered| {
            if let Some(record) = remembered.storages.get_mut(name) {
                record.options = options;
            }
        })?;
        tracing::info!("storage {name} has other options");
        self.show(name)
    }

    /// A name means one branch.
    fn refuse_twins(&self, name: &StorageName, store: &Store) -> Result<()> {
        for branch in store.branches() {
            if let Ok((storage, _)) = self.of(&branch.name) {
                let branch = branch.name;
                return Err(
                    Error::refused(format!("both {storage} and {name} have a branch {branch}"))
                        .hint(format!("delete or detach one of them: `zenith branch -d {branch}`")),
                );
            }
        }
        Ok(())
    }

    /// Only attached storages can be detached.
    pub fn check_detachable(&self, name: &StorageName) -> Result<()> {
        if name.is_local() {
            return Err(
                Error::refused("the storage local is the store itself").hint("only attached storages can be detached")
            );
        }
        if !self.attached().contains_key(name) {
            return Err(self.unknown(name));
        }
        Ok(())
    }

    /// Lets go of a storage; what is in it stays there.
    pub fn detach(&self, name: &StorageName) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_detachable(name)?;
        self.memory
            .change(|remembered| drop(remembered.storages.remove(name)))?;
        let store = self.attached_mut().remove(name);
        self.share_descriptors();
        self.tended(name, None);
        if let Some(Ok(store)) = store {
            wait_until_alone(&store);
        }
        self.parent.let_go_of_lock(name);
        tracing::info!("storage {name} detached");
        Ok(())
    }

    /// Of all, whether they can be used or not; `local` first.
    pub fn names(&self) -> Vec<StorageName> {
        let attached = self.attached();
        [StorageName::local()]
            .into_iter()
            .chain(attached.keys().cloned())
            .collect()
    }

    pub fn list(&self) -> Result<Vec<Storage>> {
        self.names().iter().map(|name| self.show(name)).collect()
    }

    pub fn show(&self, name: &StorageName) -> Result<Storage> {
        let upkeep_error = self.failing().get(name).cloned();
        self.described(name).map(|storage| Storage {
            upkeep_error,
            ..storage
        })
    }

    fn described(&self, name: &StorageName) -> Result<Storage> {
        if name.is_local() {
            return Storage::described(name, self.local.dir(), &self.local, None);
        }
        let record = self.memory.get().storages.get(name).cloned();
        let record = record.ok_or_else(|| self.unknown(name))?;
        match self.attached().get(name) {
            Some(Ok(store)) => Storage::described(name, &record.path, store, Some(record.options)),
            Some(Err(why)) => Ok(Storage::missing(name, &record.path, record.options, why)),
            None => Err(self.unknown(name)),
        }
    }

    /// The level of zstd at which the storage packs its sealed layers, if it does.
    pub fn packing(&self, name: &StorageName) -> Option<i32> {
        let remembered = self.memory.get();
        remembered
            .storages
            .get(name)
            .and_then(|record| record.options.packing())
    }

    /// Notes how the upkeep of a storage has ended.
    pub fn tended(&self, name: &StorageName, error: Option<String>) {
        match error {
            Some(error) => self.failing().insert(name.clone(), error),
            None => self.failing().remove(name),
        };
    }

    fn failing(&self) -> MutexGuard<'_, BTreeMap<StorageName, String>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unknown(&self, name: &StorageName) -> Error {
        let known: Vec<String> = self.attached().keys().map(StorageName::to_string).collect();
        let known = [vec![StorageName::local().to_string()], known].concat();
        Error::not_found(format!("no storage named {name}")).hint(known_names("storages", &name.to_string(), &known))
    }

    fn open_store(&self, path: &Path) -> Result<Arc<Store>> {
        Ok(Store::open(path, self.descriptors.disk())?)
    }

    /// With the lock that was kept since an earlier service, if it was.
    fn reopen(&self, record: &StorageRecord, lock: Option<OwnedFd>) -> Result<Arc<Store>> {
        match lock {
            Some(lock) => Ok(Store::reopen(&record.path, self.descriptors.disk(), lock)?),
            None => self.open_store(&record.path),
        }
    }

    /// A store that is there is taken as it is; else a new one is made.
    fn make_or_open(&self, path: &Path) -> Result<(Arc<Store>, Option<String>)> {
        match self.open_store(path) {
            Err(error) if error.kind == crate::error::Kind::NotFound => {
                let warning = Store::create(path, Disk::new())?;
                Ok((self.open_store(path)?, warning))
            }
            opened => opened.map(|store| {
                let warning = store.warning().map(String::from);
                (store, warning)
            }),
        }
    }

    fn share_descriptors(&self) {
        self.descriptors.set_stores(1 + self.attached().len());
    }

    fn attached(&self) -> RwLockReadGuard<'_, BTreeMap<StorageName, State>> {
        self.attached.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn attached_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<StorageName, State>> {
        self.attached.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for those who are just working on a store that nobody finds any more: it is let go of with the last of them.
fn wait_until_alone(store: &Arc<Store>) {
    let deadline = Instant::now() + LEAVING;
    while Arc::strong_count(store) > 1 && Instant::now() < deadline {
        thread::sleep(PAUSE);
    }
}
