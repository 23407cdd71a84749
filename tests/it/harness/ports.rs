//! Ports that no other test takes meanwhile.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

/// A port that is ours while this lives, whether or not something listens on it.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    _lock: File,
}

impl Port {
    /// A port that nobody has. It lies below those that the kernel gives to outgoing connections,
    /// one of which could take it, or connect to itself, while its server is down.
    pub(crate) fn lease() -> Self {
        let locks = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports");
        fs::create_dir_all(&locks).unwrap();
        for _ in 0..1000 {
            let number = 3_500 + u16::try_from(super::random() % 11_000).unwrap();
            let lock = File::create(locks.join(number.to_string())).unwrap();
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self {
                    number,
                    _lock: lock,
                };
            }
        }
        panic!("no free port was found");
    }
}
