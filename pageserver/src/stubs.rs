//! Signatures only, until the real modules land.
#![allow(unused_variables, dead_code)]
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use serde::{Deserialize, Serialize};
use crate::*;

#[derive(Clone, Default)]
pub struct Disk;
impl Disk { pub fn new() -> Disk { Disk } }
pub struct View;
impl View {
    pub fn layer(&self) -> LayerId { todo!() }
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> FsResult<Attr> { todo!() }
    pub fn getattr(&self, ino: Ino) -> FsResult<Attr> { todo!() }
    pub fn readlink(&self, ino: Ino) -> FsResult<OsString> { todo!() }
    pub fn readdir(&self, ino: Ino, cookie: u64, max: usize) -> FsResult<Vec<DirEntry>> { todo!() }
    pub fn parent(&self, dir: Ino) -> FsResult<Ino> { todo!() }
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> FsResult<usize> { todo!() }
    pub fn seek(&self, ino: Ino, offset: u64, whence: Seek) -> FsResult<u64> { todo!() }
    pub fn is_wal(&self, ino: Ino) -> bool { todo!() }
    pub fn space(&self) -> FsResult<Space> { todo!() }
}
pub struct Timeline;
impl Timeline {
    pub fn view(&self) -> &View { todo!() }
    pub fn create(&self, parent: Ino, name: &OsStr, node: NewNode, now: Time) -> FsResult<Attr> { todo!() }
    pub fn link(&self, ino: Ino, parent: Ino, name: &OsStr, now: Time) -> FsResult<Attr> { todo!() }
    pub fn unlink(&self, parent: Ino, name: &OsStr, now: Time) -> FsResult<Attr> { todo!() }
    pub fn rmdir(&self, parent: Ino, name: &OsStr, now: Time) -> FsResult<Attr> { todo!() }
    pub fn rename(&self, parent: Ino, name: &OsStr, new_parent: Ino, new_name: &OsStr, how: Rename, now: Time) -> FsResult<Option<Attr>> { todo!() }
    pub fn setattr(&self, ino: Ino, set: SetAttr, now: Time) -> FsResult<Attr> { todo!() }
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Option<Time>) -> FsResult<usize> { todo!() }
    pub fn fallocate(&self, ino: Ino, how: Fallocate, offset: u64, len: u64, now: Time) -> FsResult<()> { todo!() }
    pub fn copy_range(&self, from: Ino, from_offset: u64, to: Ino, to_offset: u64, len: u64, now: Time) -> FsResult<usize> { todo!() }
    pub fn fsync(&self, ino: Ino) -> FsResult<()> { todo!() }
    pub fn forget(&self, ino: Ino) { todo!() }
    pub fn space(&self) -> FsResult<Space> { todo!() }
    pub fn branch(&self) -> BranchName { todo!() }
}
pub struct Store;
#[derive(Clone, Debug)]
pub enum Start { Empty, Branch(BranchName), Snapshot(SnapshotName) }
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BranchInfo { pub name: BranchName, pub head: LayerId, pub parent: Option<String>, pub created: Time }
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotInfo { pub name: SnapshotName, pub layer: LayerId, pub created: Time, pub postgres: Option<PgInfo> }
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PgInfo { pub version: String, pub system_id: u64, pub redo_lsn: u64, pub wal_timeline: u32, pub in_production: bool }
impl Store {
    pub fn create(dir: &Path, disk: Disk, now: Time) -> Result<()> { todo!() }
    pub fn open(dir: &Path, disk: Disk) -> Result<Arc<Store>> { todo!() }
    pub fn dir(&self) -> &Path { todo!() }
    pub fn branches(&self) -> Vec<BranchInfo> { todo!() }
    pub fn branch(&self, name: &BranchName) -> Result<BranchInfo> { todo!() }
    pub fn create_branch(&self, name: &BranchName, start: &Start, owner: (u32, u32), now: Time) -> Result<BranchInfo> { todo!() }
    pub fn destroy_branch(&self, name: &BranchName) -> Result<()> { todo!() }
    pub fn timeline(&self, name: &BranchName) -> Result<Arc<Timeline>> { todo!() }
    pub fn snapshot_view(&self, name: &SnapshotName) -> Result<Arc<View>> { todo!() }
    pub fn sealed_view(&self, layer: LayerId) -> Result<Arc<View>> { todo!() }
    pub fn snapshots(&self, branch: Option<&BranchName>) -> Vec<SnapshotInfo> { todo!() }
    pub fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotInfo> { todo!() }
    pub fn create_snapshot(&self, name: &SnapshotName, now: Time) -> Result<SnapshotInfo> { todo!() }
    pub fn destroy_snapshot(&self, name: &SnapshotName) -> Result<()> { todo!() }
    pub fn checkout(&self, name: &SnapshotName, now: Time) -> Result<Option<SnapshotName>> { todo!() }
}
