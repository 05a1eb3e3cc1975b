//! `/storages`: where data lives.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path as FsPath, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::State;
use pageserver::{BranchName, Store};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Asked, Body, Destroying, Done, Made, Named, blocking, done, made, schema};
use crate::error::{Error, Result};
use crate::service::Service;

/// The name of a storage; the same rules as for a branch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StorageName(BranchName);

/// What kind of thing holds the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StorageKind {
    /// A page store: on a path of this machine, or on another zenith server
    Native,
    /// A bucket
    S3,
}

/// Settings of a storage, `key=value`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Options(BTreeMap<String, String>);

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewStorage {
    pub kind: StorageKind,
    pub options: Options,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Storage {
    #[schema(value_type = schema::Name)]
    pub name: StorageName,
    /// Bytes that its branches and snapshots hold.
    pub used: u64,
    /// `zenith-local`, later also `zenith-remote` and `S3`.
    #[serde(rename = "type")]
    pub kind: String,
    pub options: Options,
    #[schema(value_type = schema::Path)]
    pub path: PathBuf,
    pub branches: usize,
    /// Sealed layers whose blocks have no checksums yet.
    pub unsummed: usize,
    /// Of a compressed storage: sealed layers that are not packed yet.
    pub unpacked: usize,
    /// Sealed layers that nobody names and that can be merged. In a compressed storage some stay: their space would not be worth the work.
    pub unmerged: usize,
    /// Bytes that its filesystem can still take.
    pub available: u64,
    /// What to know of that filesystem.
    pub warning: Option<String>,
    /// Why its upkeep (checksums, flattening, packing, merging) did not go on when it was last tried; it is tried again every minute.
    pub upkeep_error: Option<String>,
    /// Why it can't be used.
    pub error: Option<String>,
}

const LOCAL: &str = "local";
const ZENITH_LOCAL: &str = "zenith-local";
const PATH: &str = "path";
const COMPRESSION: &str = "compression";

/// Levels that zstd has, and the one that it takes itself.
const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = 1..=22;
const ZSTD_LEVEL: i32 = 3;

impl StorageName {
    /// The storage that is always there: the store itself.
    pub fn local() -> StorageName {
        StorageName(LOCAL.parse().expect("a valid name"))
    }

    pub fn is_local(&self) -> bool {
        self.0.as_str() == LOCAL
    }
}

impl FromStr for StorageName {
    type Err = pageserver::Error;

    fn from_str(name: &str) -> std::result::Result<StorageName, pageserver::Error> {
        name.parse().map(StorageName)
    }
}

impl fmt::Display for StorageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Options {
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Options {
        Options(pairs.into_iter().collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Where a storage on this machine lies; absolute.
    pub fn path(&self) -> Result<&FsPath> {
        let path = self.get(PATH).map(FsPath::new);
        path.filter(|path| path.is_absolute())
            .ok_or_else(|| Error::usage("a native storage needs an absolute path").hint("add -c path=/DIRECTORY"))
    }

    /// The options without the path, if they are ones that a storage of this kind can have.
    pub fn checked(&self, kind: StorageKind) -> Result<Options> {
        let not_yet = |what: &str| {
            Error::refused(format!("{what} storages are not available yet")).hint("a native storage with path= is")
        };
        if kind == StorageKind::S3 {
            return Err(not_yet("S3"));
        }
        let mut others = self.0.clone();
        others.remove(PATH);
        for (key, value) in &others {
            match key.as_str() {
                "url" => return Err(not_yet("remote")),
                COMPRESSION => drop(level(value)?),
                _ => {
                    return Err(Error::usage(format!("a native storage has no option {key}"))
                        .hint("its options are path, url and compression"));
                }
            }
        }
        Ok(Options(others))
    }

    /// The level of zstd at which sealed layers are to be packed, if they are.
    pub fn packing(&self) -> Option<i32> {
        self.get(COMPRESSION).and_then(|value| level(value).ok().flatten())
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|(key, value)| format!("{key}={value}")).collect();
        f.write_str(&pairs.join(","))
    }
}

/// The level that a value of the option stands for.
fn level(value: &str) -> Result<Option<i32>> {
    let level = match value.split_once(':') {
        None if value == "none" => return Ok(None),
        None if value == "zstd" => Some(ZSTD_LEVEL),
        Some(("zstd", level)) => level.parse().ok(),
        _ => None,
    };
    let level = level.filter(|level| ZSTD_LEVELS.contains(level));
    level.map(Some).ok_or_else(|| {
        Error::usage(format!("{value:?} is no compression"))
            .hint("take none, zstd or zstd:LEVEL with a level from 1 to 22")
    })
}

impl Storage {
    pub fn described(name: &StorageName, path: &FsPath, store: &Store, options: Option<Options>) -> Result<Storage> {
        let options = options.unwrap_or_default();
        Ok(Storage {
            name: name.clone(),
            used: store.bytes()?,
            kind: ZENITH_LOCAL.into(),
            path: path.into(),
            branches: store.branches().len(),
            unsummed: store.unsummed(),
            unpacked: options.packing().map_or(0, |_| store.unpacked()),
            unmerged: store.unmerged(),
            available: store.space()?.available,
            warning: store.warning().map(String::from),
            upkeep_error: None,
            error: None,
            options,
        })
    }

    pub fn missing(name: &StorageName, path: &FsPath, options: Options, why: &str) -> Storage {
        Storage {
            name: name.clone(),
            used: 0,
            kind: ZENITH_LOCAL.into(),
            options,
            path: path.into(),
            branches: 0,
            unsummed: 0,
            unpacked: 0,
            unmerged: 0,
            available: 0,
            warning: None,
            upkeep_error: None,
            error: Some(why.into()),
        }
    }
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, attach, detach))
}

/// All storages.
#[utoipa::path(get, path = "/storages", responses((status = 200, body = Vec<Storage>)))]
async fn list(State(service): State<Arc<Service>>) -> Answer<Vec<Storage>> {
    blocking(move || service.storages()).await
}

/// One storage.
#[utoipa::path(
    get, path = "/storages/{name}",
    params(("name" = schema::Name, Path)),
    responses((status = 200, body = Storage))
)]
async fn show(State(service): State<Arc<Service>>, Named(name): Named<StorageName>) -> Answer<Storage> {
    blocking(move || service.storage(&name)).await
}

/// Attaches a storage; one that isn't there yet is made.
#[utoipa::path(
    put, path = "/storages/{name}",
    params(("name" = schema::Name, Path)),
    request_body = NewStorage,
    responses((status = 201, body = Storage))
)]
async fn attach(
    State(service): State<Arc<Service>>,
    Named(name): Named<StorageName>,
    Body(new): Body<NewStorage>,
) -> Made<Storage> {
    made(move || service.attach_storage(&name, &new)).await
}

/// Lets go of a storage; what is in it stays there.
#[utoipa::path(
    delete, path = "/storages/{name}",
    params(("name" = schema::Name, Path), Destroying),
    responses((status = 204))
)]
async fn detach(
    State(service): State<Arc<Service>>,
    Named(name): Named<StorageName>,
    Asked(how): Asked<Destroying>,
) -> Done {
    done(move || match how.dry_run {
        true => service.check_storage_detachable(&name),
        false => service.detach_storage(&name),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        Options::new(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())))
    }

    #[test]
    fn options_that_no_storage_has_are_refused() {
        let path = ("path", "/data");
        let good = options(&[path, ("compression", "zstd:19")]);
        assert_eq!(
            good.checked(StorageKind::Native).expect("good").to_string(),
            "compression=zstd:19"
        );
        assert_eq!(good.path().expect("absolute"), FsPath::new("/data"));
        assert!(options(&[("path", "data")]).path().is_err());
        for bad in [
            ("compression", "zstd:23"),
            ("compression", "lz4"),
            ("colour", "red"),
            ("url", "zenith://x"),
        ] {
            assert!(options(&[path, bad]).checked(StorageKind::Native).is_err(), "{bad:?}");
        }
        assert!(good.checked(StorageKind::S3).is_err());
    }
}
