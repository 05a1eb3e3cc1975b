//! A small ext4 of a test's own, on a loop device, which root may make; all of it goes when the test ends.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

pub struct LoopDisk {
    pub dir: PathBuf,
    image: PathBuf,
}

impl LoopDisk {
    pub fn new(name: &str, bytes: u64) -> LoopDisk {
        LoopDisk::with(name, bytes, &["-b", "4096"])
    }

    /// `options` are mkfs.ext4's.
    pub fn with(name: &str, bytes: u64, options: &[&str]) -> LoopDisk {
        let unique = format!("zenith-test-{name}-{}", std::process::id());
        let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{unique}.img"));
        let dir = std::env::temp_dir().join(&unique);
        File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .expect("an image");
        fs::create_dir(&dir).expect("a directory for the disk");
        let disk = LoopDisk { dir, image };
        let (image, dir) = (path(&disk.image), path(&disk.dir));
        run("mkfs.ext4", &[&["-q", "-F", "-m", "0"], options, &[image]].concat());
        run("mount", &["-o", "loop", image, dir]);
        fs::set_permissions(&disk.dir, fs::Permissions::from_mode(0o711)).expect("others may pass");
        disk
    }

    /// Takes all space but some; returns the file that has it.
    pub fn fill(&self, free: u64) -> PathBuf {
        let ballast = self.dir.join("ballast");
        let file = File::create(&ballast).expect("a file");
        let (mut len, mut step) = (0, i64::MAX as u64);
        while step >= 4096 {
            step = step.min(self.available().saturating_sub(free));
            match fallocate(&file, FallocateFlags::empty(), len, step as i64) {
                Ok(()) => len += step as i64,
                Err(_) => step /= 2,
            }
        }
        ballast
    }

    pub fn available(&self) -> u64 {
        let stat = statvfs(&self.dir).expect("statfs");
        stat.blocks_available() * stat.fragment_size()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.dir).status();
        if unmounted.is_ok_and(|status| status.success()) {
            let _ = fs::remove_dir(&self.dir);
            let _ = fs::remove_file(&self.image);
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
