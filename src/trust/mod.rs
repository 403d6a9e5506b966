//! Who may say what: keys and the keyring.

pub mod keyring;
pub mod keys;
#[cfg(test)]
pub(crate) mod openssl;
mod pem;
