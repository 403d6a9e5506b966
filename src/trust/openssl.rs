//! For tests only: the `openssl` command as the independent judge of keys and signatures.

use std::path::PathBuf;
use std::process::Command;

/// A scratch folder in which `openssl` runs.
pub(crate) struct OpenSsl {
    folder: tempfile::TempDir,
}

/// `None`, and a line that says so, on a machine without OpenSSL 3.
pub(crate) fn openssl(test: &str) -> Option<OpenSsl> {
    let version = Command::new("openssl").arg("version").output().ok();
    let version = version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    if version.is_some_and(|text| text.starts_with("OpenSSL 3")) {
        return Some(OpenSsl { folder: tempfile::tempdir().unwrap() });
    }
    println!("SKIPPED {test}: no OpenSSL 3 on this machine (apt-get install openssl)");
    None
}

impl OpenSsl {
    /// Puts a file into the folder.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs `openssl` with these words; its output, or what it said.
    pub(crate) fn run(&self, words: &str) -> Result<Vec<u8>, String> {
        let out = Command::new("openssl")
            .args(words.split(' '))
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        if out.status.success() {
            Ok(out.stdout)
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
