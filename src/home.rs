//! `SLUICE_HOME`, the data folder: the embedded database, the first admin key, the CLI logins.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use secrecy::SecretString;

/// The variable that names the data folder.
pub const VARIABLE: &str = "SLUICE_HOME";

/// The data folder. Naming it makes nothing; [`Home::create`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    path: PathBuf,
}

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither `SLUICE_HOME` nor `HOME` is set.
    #[error("there is no data folder: set SLUICE_HOME, or HOME")]
    Unknown,
    /// The file system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path at fault.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another `sluice up` is at work on it.
    #[error(
        "the data folder {} is in use by {holder}; stop it first, or set SLUICE_HOME to another \
         folder", path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who uses it.
        holder: String,
    },
}

/// The data folder is ours while this lives.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
}

impl Home {
    /// The folder that `SLUICE_HOME` names; by default `~/.local/share/sluice`.
    ///
    /// # Errors
    /// When neither `SLUICE_HOME` nor `HOME` is set.
    pub fn find() -> Result<Self, HomeError> {
        let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        let path = named
            .map(PathBuf::from)
            .or_else(Self::default_path)
            .ok_or(HomeError::Unknown)?;
        Ok(Self::at(path))
    }

    /// This folder.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        // What is kept here, such as a login's directory, must not move with the working
        // directory.
        let path = std::path::absolute(&path).unwrap_or(path);
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder is where it is by default, so that a client finds it unasked.
    #[must_use]
    pub fn is_default(&self) -> bool {
        Self::default_path().is_some_and(|path| path == self.path)
    }

    fn default_path() -> Option<PathBuf> {
        let user = std::env::var_os("HOME").filter(|value| !value.is_empty())?;
        Some(PathBuf::from(user).join(".local/share/sluice"))
    }

    /// The database of the embedded mode; made empty, for its owner only, when it is not there.
    /// It holds every prompt, and the folder may have been made by someone with other ideas.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn database(&self) -> Result<PathBuf, HomeError> {
        let path = self.path.join("sluice.db");
        match OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(_) => Ok(path),
            Err(source) => Err(HomeError::Io { path, source }),
        }
    }

    /// The first admin key.
    #[must_use]
    pub fn admin_key_file(&self) -> PathBuf {
        self.path.join("admin.key")
    }

    /// The configuration that is read when no other is named.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.path.join("sluice.toml")
    }

    /// Makes the folder, for its owner only, when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self) -> Result<(), HomeError> {
        if self.path.is_dir() {
            return Ok(());
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|source| HomeError::Io {
                path: self.path.clone(),
                source,
            })
    }

    /// The permissions of the folder, such as `0o700`.
    ///
    /// # Errors
    /// When there is no folder, or it cannot be looked at.
    pub fn mode(&self) -> io::Result<u32> {
        Ok(fs::metadata(&self.path)?.permissions().mode() & 0o7777)
    }

    /// Takes the folder for this process alone. The lock goes with the process, however it ends.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock(&self) -> Result<HomeLock, HomeError> {
        let path = self.path.join("lock");
        let io = |source| HomeError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {
                // Only for the message that the next one gets.
                file.set_len(0).map_err(io)?;
                write!(file, "process {}", std::process::id()).map_err(io)?;
                Ok(HomeLock { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let said = file.read_to_string(&mut holder).is_ok() && !holder.is_empty();
                let holder = if said {
                    format!("`sluice up` ({holder})")
                } else {
                    "`sluice up`".into()
                };
                Err(HomeError::InUse {
                    path: self.path.clone(),
                    holder,
                })
            }
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// The key in `admin.key`, when there is one.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn admin_key(&self) -> Result<Option<SecretString>, HomeError> {
        let path = self.admin_key_file();
        match fs::read_to_string(&path) {
            Ok(key) if key.trim().is_empty() => Ok(None),
            Ok(key) => Ok(Some(key.trim().into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HomeError::Io { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_new_folder_is_for_its_owner_only_and_holds_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("a/b"));
        home.create().unwrap();
        assert_eq!(home.mode().unwrap(), 0o700);
        let mode = fs::metadata(home.database().unwrap())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(home.admin_key().unwrap().is_none());
        fs::write(home.admin_key_file(), "slc_secret\n").unwrap();
        assert_eq!(
            home.admin_key().unwrap().unwrap().expose_secret(),
            "slc_secret"
        );
    }

    #[test]
    fn only_one_process_has_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let first = home.lock().unwrap();
        let error = home.lock().unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        home.lock().unwrap();
    }

    #[test]
    fn a_relative_folder_does_not_move() {
        assert!(Home::at("data").path().is_absolute());
    }
}
