//! Files that are replaced as a whole.

use crate::support::*;
use demist::files::atomic;
use std::fs;
use std::io::Write;
use std::path::Path;

#[test]
fn a_write_creates_and_replaces_and_leaves_nothing_else() {
    let dir = temp();
    let path = dir.path().join("a.bin");
    atomic::write(&path, b"one").unwrap();
    atomic::write(&path, b"two!").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two!");
    assert_eq!(names(dir.path()), ["a.bin"]);
}

#[test]
fn a_failed_write_keeps_the_old_file() {
    let dir = temp();
    let path = dir.path().join("a.bin");
    atomic::write(&path, b"old").unwrap();
    let error = atomic::write_with(&path, |w| {
        w.write_all(&[7; 100_000])?;
        Err(std::io::Error::other("broke off"))
    })
    .unwrap_err();
    assert_io_names(&error, &path);
    assert!(error.to_string().contains("broke off"));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["a.bin"]);
}

#[test]
fn impossible_targets_are_errors_that_name_them() {
    let dir = temp();
    let missing = dir.path().join("no/such/a.bin");
    let error = atomic::write(&missing, b"x").unwrap_err();
    assert_io_names(&error, &missing);
    assert!(error.to_string().contains("there is no folder"), "{error}");

    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let below = file.join("a.bin");
    assert_io_names(&atomic::write(&below, b"x").unwrap_err(), &below);

    let error = atomic::write(dir.path(), b"x").unwrap_err();
    assert_io_names(&error, dir.path());
    assert!(error.to_string().contains("folder"), "{error}");
    assert!(atomic::write(Path::new(""), b"x").is_err());
    assert_eq!(names(dir.path()), ["file"]);
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_get_the_usual_mode_and_keep_their_own() {
        let dir = temp();
        let (ours, usual) = (dir.path().join("ours"), dir.path().join("usual"));
        atomic::write(&ours, b"x").unwrap();
        fs::write(&usual, b"x").unwrap();
        assert_eq!(mode(&ours), mode(&usual));
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o640)).unwrap();
        atomic::write(&ours, b"y").unwrap();
        assert_eq!(mode(&ours), 0o640);
    }

    #[test]
    fn a_read_only_folder_is_named() {
        let dir = temp();
        let folder = dir.path().join("locked");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
        // The superuser may write everywhere: ask the system what holds here.
        let allowed = fs::write(folder.join("probe"), "x").is_ok();
        let path = folder.join("a.bin");
        let result = atomic::write(&path, b"x");
        assert_eq!(result.is_ok(), allowed);
        if let Err(error) = result {
            assert_io_names(&error, &path);
            assert!(error.to_string().contains("cannot write in the folder"), "{error}");
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn links_are_followed_and_devices_refused() {
        let dir = temp();
        fs::create_dir(dir.path().join("data")).unwrap();
        let (real, link) = (dir.path().join("data/real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        symlink("data/real", &link).unwrap();
        atomic::write(&link, b"new").unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let null = Path::new("/dev/null");
        assert_io_names(&atomic::write(null, b"x").unwrap_err(), null);
    }
}
