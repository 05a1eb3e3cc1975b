//! What a directory must be to be mounted on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::MountError;

/// The absolute path of an empty directory on which nothing is mounted yet.
pub fn mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let unreadable = |source| MountError::unreadable(path, source);
    let found = fs::canonicalize(path).map_err(unreadable)?;
    let here = fs::metadata(&found).map_err(unreadable)?;
    if !here.is_dir() {
        return Err(MountError::NotADirectory { path: found });
    }
    let above = fs::metadata(found.join("..")).map_err(unreadable)?;
    if here.dev() != above.dev() || here.ino() == above.ino() {
        return Err(MountError::AlreadyMounted { path: found });
    }
    if fs::read_dir(&found).map_err(unreadable)?.next().is_some() {
        return Err(MountError::NotEmpty { path: found });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> MountError {
        mountpoint(path).expect_err("must be refused")
    }

    #[test]
    fn only_an_empty_directory_will_do() {
        let dir = std::env::temp_dir().join(format!("zenith-check-{}", std::process::id()));
        assert!(matches!(refusal(&dir), MountError::Missing { .. }));
        fs::create_dir(&dir).expect("a scratch directory");
        assert!(mountpoint(&dir).is_ok());
        fs::write(dir.join("file"), "").expect("a file");
        assert!(matches!(refusal(&dir), MountError::NotEmpty { .. }));
        assert!(matches!(refusal(&dir.join("file")), MountError::NotADirectory { .. }));
        fs::remove_dir_all(&dir).expect("cleared away");
    }

    #[test]
    fn nothing_is_mounted_over_another_file_system() {
        assert!(matches!(refusal(Path::new("/")), MountError::AlreadyMounted { .. }));
        assert!(matches!(refusal(Path::new("/proc")), MountError::AlreadyMounted { .. }));
    }
}
