//! The bases whose cards come with the program, and the keys that signed them.
//!
//! A card is small and is built in, so that `gaisnet model fetch smollm2-135m` needs nothing but the
//! program; the weights come from where the card says.

use std::path::Path;

use crate::trust::keys::{KeyError, VerifyingKey};
use crate::trust::release::ReleaseTrust;

/// A card that is built in.
#[derive(Debug, Clone, Copy)]
pub struct Shipped {
    /// Name of the model.
    pub name: &'static str,
    /// The card's bytes.
    pub card: &'static [u8],
    /// Its signature.
    pub seal: &'static [u8],
}

/// The adopted bases.
pub static ADOPTED: [Shipped; 2] = [
    Shipped {
        name: "smollm2-135m",
        card: include_bytes!("../../models/smollm2-135m.toml"),
        seal: include_bytes!("../../models/smollm2-135m.sig"),
    },
    Shipped {
        name: "minilm-l6",
        card: include_bytes!("../../models/minilm-l6.toml"),
        seal: include_bytes!("../../models/minilm-l6.sig"),
    },
];

/// The built-in card of this name.
pub fn by_name(name: &str) -> Option<&'static Shipped> {
    ADOPTED.iter().find(|shipped| shipped.name == name)
}

/// The built-in card that a path means where there is no such file: `smollm2-135m`, with or without a folder
/// and `.toml`.
pub fn instead_of(path: &Path) -> Option<&'static Shipped> {
    let name = path.file_stem().and_then(std::ffi::OsStr::to_str)?;
    if path.exists() { None } else { by_name(name) }
}

/// Who signed what is in `models/`: believed where settings name no key.
///
/// # Errors
/// [`KeyError`] when the program was built with something else than keys.
pub fn trust() -> Result<ReleaseTrust, KeyError> {
    let [first, second] = KEYS;
    let first = ReleaseTrust::pinned(VerifyingKey::from_pem(first)?);
    Ok(first.and_key(VerifyingKey::from_pem(second)?))
}

/// The public halves; the first signed `signal-bearing`, the second the adopted bases.
const KEYS: [&str; 2] =
    [include_str!("../../models/release.pub.pem"), include_str!("../../models/release-2.pub.pem")];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Card;

    #[test]
    fn each_built_in_card_is_signed_and_pins_a_package() {
        let trust = trust().unwrap();
        for shipped in ADOPTED {
            trust.check(shipped.card, shipped.seal).unwrap();
            let Ok(Card::Adopted(card)) = Card::parse(shipped.card) else { panic!("{shipped:?}") };
            assert_eq!(card.name, shipped.name);
            assert!(card.source.is_some());
            let again = card.to_toml().unwrap();
            assert_eq!(Card::parse(again.as_bytes()).unwrap(), Card::Adopted(card));
        }
    }
}
