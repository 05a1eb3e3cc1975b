//! A library to be loaded before libc, which takes one of zenith's syncs out: the mutants of the power-cut tests.
//!
//! `NO_SYNC_BELOW` is the store, `NO_SYNC_OF` what of it is not synced: `data` (the files of the layers, by fdatasync or
//! syncfs), `names` (the layers' directories), `log` (RocksDB's log), or `settling` (what an earlier
//! process has written: the whole filesystem, by the descriptor of the store's lock).

use std::ffi::{c_int, c_long};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// # Safety
/// As fdatasync.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(libc::SYS_fdatasync, fd)
}

/// # Safety
/// As fsync.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    sync(libc::SYS_fsync, fd)
}

/// # Safety
/// As syncfs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syncfs(fd: c_int) -> c_int {
    sync(libc::SYS_syncfs, fd)
}

fn sync(call: c_long, fd: c_int) -> c_int {
    match is_left_out(call, fd) {
        true => 0,
        // SAFETY: each of these calls takes a descriptor and no pointers.
        false => unsafe { libc::syscall(call, fd) as c_int },
    }
}

fn is_left_out(call: c_long, fd: c_int) -> bool {
    let (Some(what), Some(store)) = (env::var_os("NO_SYNC_OF"), env::var_os("NO_SYNC_BELOW")) else {
        return false;
    };
    let Ok(path) = fs::read_link(format!("/proc/self/fd/{fd}")) else {
        return false;
    };
    let store = PathBuf::from(store);
    let in_layers = path.starts_with(store.join("layers"));
    let is_dir = path.is_dir();
    let settles = call == libc::SYS_syncfs && path == store.join("lock");
    match what.to_str() {
        Some("data") => settles || in_layers && (call == libc::SYS_syncfs || !is_dir),
        Some("names") => in_layers && is_dir && call != libc::SYS_syncfs,
        Some("log") => is_log(&path, &store),
        Some("settling") => settles,
        _ => false,
    }
}

fn is_log(path: &Path, store: &Path) -> bool {
    path.starts_with(store.join("db")) && path.extension().is_some_and(|end| end == "log")
}
