//! zenith with one of its syncs taken out, to see that the harness sees.
//!
//! The program is the one that is tested; a library that is loaded before libc ([`no_sync`](../no_sync.rs)) answers the
//! sync in question at once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Which sync is not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// That of the backing files: fdatasync and syncfs.
    Data,
    /// That of the layers' directories: fsync.
    Names,
    /// That of RocksDB's log: fdatasync.
    Log,
    /// That of what an earlier service has written, when the store is opened: syncfs of all layers.
    Settling,
}

impl Mutant {
    /// Has the sync left out in what the command starts, on the store.
    pub fn arm(self, command: &mut Command, store: &Path) {
        let what = match self {
            Mutant::Data => "data",
            Mutant::Names => "names",
            Mutant::Log => "log",
            Mutant::Settling => "settling",
        };
        command.env("LD_PRELOAD", library());
        command.env("NO_SYNC_OF", what).env("NO_SYNC_BELOW", store);
    }
}

/// Built once, as an example of this package, the only way to have a library built for a test.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .parent()
            .expect("the build directory");
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--release",
                "--workspace",
                "--quiet",
                "--example",
                "no_sync",
                "--target-dir",
            ])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(
            built.is_ok_and(|status| status.success()),
            "the library of the mutants is built"
        );
        let library = target.join("release/examples/libno_sync.so");
        assert!(library.is_file(), "{}", library.display());
        library
    })
}
