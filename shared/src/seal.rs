//! Sealing what must not be read on its way: XChaCha20-Poly1305 under the master key.
//!
//! A seal is bound to its context, such as an account's name: moved to another place it does not
//! open. Whoever holds the master key can make seals, so an opened one is also known to be ours.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use secrecy::{ExposeSecret, SecretBox, SecretString};

/// The variable that holds the master key.
pub const VARIABLE: &str = "SLUICE_MASTER_KEY";

/// The variable that names the file with the master key.
pub const FILE_VARIABLE: &str = "SLUICE_MASTER_KEY_FILE";

/// The file of the master key in the data folder.
pub const FILE: &str = "master.key";

/// What a seal begins with: the form of what follows.
const FORM: &str = "v1.";

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// The key under which accounts made at run time are sealed.
#[derive(Clone)]
pub struct MasterKey(Arc<SecretBox<[u8; KEY_BYTES]>>);

/// Why there is no master key. Never holds the key itself.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// It is none.
    #[error(
        "the master key in {0} is not 32 bytes in base64; make one with `openssl rand -base64 32`"
    )]
    Malformed(String),
    /// Others than its owner may read it.
    #[error("{} can be read by others (mode {mode:o}); make it 0600", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file cannot be read or made.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A seal that does not open: another master key, another context, or damage. Which of them, the
/// cipher does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it was sealed with another master key, or is damaged")]
pub struct Unopened;

impl MasterKey {
    /// The key that `text` holds in base64. `place` is where it stands, for the message.
    ///
    /// # Errors
    /// When it is not 32 bytes in base64.
    pub fn parse(text: &str, place: &str) -> Result<Self, MasterKeyError> {
        let malformed = || MasterKeyError::Malformed(place.to_owned());
        let bytes = STANDARD.decode(text.trim()).map_err(|_| malformed())?;
        let bytes: [u8; KEY_BYTES] = bytes.try_into().map_err(|_| malformed())?;
        Ok(Self::of(bytes))
    }

    fn of(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Arc::new(SecretBox::new(Box::new(bytes))))
    }

    /// A new key.
    #[must_use]
    pub fn generate() -> Self {
        Self::of(rand::random())
    }

    /// The key of this process: from `SLUICE_MASTER_KEY`, from the file that
    /// `SLUICE_MASTER_KEY_FILE` names, or from `master.key` in the data folder.
    ///
    /// # Errors
    /// When there is one that cannot be used.
    pub fn find(home: &Path) -> Result<Option<Self>, MasterKeyError> {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        if let Some(text) = variable(VARIABLE) {
            return Self::parse(&text, VARIABLE).map(Some);
        }
        if let Some(path) = variable(FILE_VARIABLE) {
            // Named on purpose, as a mounted secret is: whose it is was someone's decision.
            return Self::read(Path::new(&path)).map(Some);
        }
        let path = home.join(FILE);
        match fs::metadata(&path) {
            Ok(file) if file.permissions().mode() & 0o077 != 0 => Err(MasterKeyError::Open {
                mode: file.permissions().mode() & 0o777,
                path,
            }),
            Ok(_) => Self::read(&path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(MasterKeyError::File { path, source }),
        }
    }

    /// As [`MasterKey::find`], and made in the data folder (mode 0600) when there is none.
    ///
    /// # Errors
    /// When there is one that cannot be used, or none can be made.
    pub fn find_or_make(home: &Path) -> Result<Self, MasterKeyError> {
        if let Some(key) = Self::find(home)? {
            return Ok(key);
        }
        let path = home.join(FILE);
        let key = Self::generate();
        match key.keep(&path) {
            Ok(()) => Ok(key),
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::read(&path),
            Err(source) => Err(MasterKeyError::File { path, source }),
        }
    }

    fn read(path: &Path) -> Result<Self, MasterKeyError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &path.display().to_string()),
            Err(source) => Err(MasterKeyError::File {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Writes it to a new file, whole or not at all: half a key would be a new one.
    fn keep(&self, path: &Path) -> io::Result<()> {
        let draft = path.with_extension(format!("{}.new", std::process::id()));
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&draft)?;
        let written = writeln!(file, "{}", STANDARD.encode(self.0.expose_secret()))
            .and_then(|()| file.sync_all())
            // A link, unlike a rename, does not replace the key of another process.
            .and_then(|()| fs::hard_link(&draft, path));
        fs::remove_file(&draft)?;
        written
    }

    /// Seals `plain` for this context.
    #[must_use]
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> String {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload {
            msg: plain,
            aad: context,
        };
        // It fails only for more than 256 GB.
        let mut sealed = nonce.to_vec();
        if let Ok(cipher) = self.cipher().encrypt(&XNonce::from(nonce), payload) {
            sealed.extend(cipher);
        }
        format!("{FORM}{}", STANDARD.encode(sealed))
    }

    /// Opens what was sealed for this context.
    ///
    /// # Errors
    /// When it was sealed with another key or for another context, or was changed since.
    pub fn open(&self, context: &[u8], sealed: &str) -> Result<SecretString, Unopened> {
        let sealed = sealed.strip_prefix(FORM).ok_or(Unopened)?;
        let sealed = STANDARD.decode(sealed).map_err(|_| Unopened)?;
        let (nonce, cipher) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(Unopened)?;
        let payload = Payload {
            msg: cipher,
            aad: context,
        };
        let plain = self
            .cipher()
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| Unopened)?;
        Ok(String::from_utf8(plain).map_err(|_| Unopened)?.into())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.expose_secret().into())
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey([hidden])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_opens_with_its_key_and_in_its_place_only() {
        let key = MasterKey::generate();
        let sealed = key.seal(b"main", b"sk-secret");
        assert!(!sealed.contains("secret"));
        let opened = key.open(b"main", &sealed).unwrap();
        assert_eq!(opened.expose_secret(), "sk-secret");
        assert_eq!(key.open(b"other", &sealed).unwrap_err(), Unopened);
        let other = MasterKey::generate();
        assert_eq!(other.open(b"main", &sealed).unwrap_err(), Unopened);
    }

    #[test]
    fn no_two_seals_are_alike() {
        let key = MasterKey::generate();
        assert_ne!(key.seal(b"", b"x"), key.seal(b"", b"x"));
    }

    #[test]
    fn what_is_damaged_does_not_open() {
        let key = MasterKey::generate();
        let sealed = key.seal(b"", b"x");
        let middle = sealed.len() / 2;
        let changed = if &sealed[middle..=middle] == "A" {
            "B"
        } else {
            "A"
        };
        let damaged = format!("{}{changed}{}", &sealed[..middle], &sealed[middle + 1..]);
        for sealed in ["", "v1.", "v1.AAAA", "v2.x", &damaged] {
            assert_eq!(key.open(b"", sealed).unwrap_err(), Unopened, "{sealed}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_not_repeated() {
        for text in ["hunter2", "", "aHVudGVyMg=="] {
            let error = MasterKey::parse(text, VARIABLE).unwrap_err().to_string();
            assert!(error.contains(VARIABLE), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        assert!(!format!("{:?}", MasterKey::generate()).contains('='));
    }

    #[test]
    fn the_file_is_made_once_for_its_owner_only() {
        let home = tempfile::tempdir().unwrap();
        assert!(MasterKey::find(home.path()).unwrap().is_none());
        let key = MasterKey::find_or_make(home.path()).unwrap();
        let again = MasterKey::find_or_make(home.path()).unwrap();
        let sealed = key.seal(b"", b"x");
        assert_eq!(again.open(b"", &sealed).unwrap().expose_secret(), "x");
        let path = home.path().join(FILE);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = MasterKey::find(home.path()).unwrap_err();
        assert!(matches!(error, MasterKeyError::Open { .. }), "{error}");
    }
}
