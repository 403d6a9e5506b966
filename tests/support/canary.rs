//! Canaries: what must not be found anywhere outside a site, in all the ways in which it could be written.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use half::f16;

/// Bytes to look for, each with a name that says whose they are and how they are written.
#[derive(Default)]
pub(crate) struct Canaries {
    /// By their first four bytes, so that a megabyte is one walk.
    by_start: BTreeMap<[u8; 4], Vec<(String, Vec<u8>)>>,
}

impl Canaries {
    /// A text, and its base64 and hex.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.bytes(&format!("{name} as text"), text.as_bytes());
    }

    /// A run of samples of a window.
    pub(crate) fn samples(&mut self, name: &str, samples: &[f32]) {
        let all = |write: &dyn Fn(f32) -> Vec<u8>| -> Vec<u8> {
            samples.iter().flat_map(|x| write(*x)).collect()
        };
        let marked = |mark: u8, bytes: &[u8]| [&[mark], bytes].concat();
        self.bytes(&format!("{name} as f32"), &all(&|x| x.to_le_bytes().to_vec()));
        self.bytes(&format!("{name} as f32, big-endian"), &all(&|x| x.to_be_bytes().to_vec()));
        self.bytes(&format!("{name} as f64"), &all(&|x| f64::from(x).to_le_bytes().to_vec()));
        self.bytes(
            &format!("{name} as f64, big-endian"),
            &all(&|x| f64::from(x).to_be_bytes().to_vec()),
        );
        self.bytes(&format!("{name} as f16"), &all(&|x| f16::from_f32(x).to_le_bytes().to_vec()));
        let msgpack = all(&|x| marked(0xca, &x.to_be_bytes()));
        self.bytes(&format!("{name} as msgpack f32"), &msgpack);
        let msgpack = all(&|x| marked(0xcb, &f64::from(x).to_be_bytes()));
        self.bytes(&format!("{name} as msgpack f64"), &msgpack);
        // One sample is enough where its digits are its own: how it is cut off differs.
        for sample in samples.iter().filter(|sample| format!("{sample}").len() >= 9) {
            for text in [format!("{sample}"), format!("{:.17}", f64::from(*sample))] {
                let text: String = text.trim_start_matches('-').chars().take(9).collect();
                self.needle(format!("{name} as decimals"), text.into_bytes());
            }
        }
    }

    /// A run of labels, in the order of the examples.
    pub(crate) fn labels(&mut self, name: &str, labels: &[usize]) {
        let bytes: Vec<u8> = labels.iter().map(|label| u8::try_from(*label).unwrap()).collect();
        let wide = |size: usize| -> Vec<u8> {
            bytes.iter().flat_map(|b| [&[*b][..], &vec![0; size - 1]].concat()).collect()
        };
        self.bytes(&format!("{name} as u8"), &bytes);
        self.bytes(&format!("{name} as u32"), &wide(4));
        self.bytes(&format!("{name} as u64"), &wide(8));
        let digits: Vec<String> = labels.iter().map(ToString::to_string).collect();
        for comma in [",", ", "] {
            self.needle(format!("{name} as digits"), digits.join(comma).into_bytes());
        }
    }

    /// Bytes, and their base64 (wherever they begin in a longer text) and hex.
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        self.needle(name.to_owned(), bytes.to_vec());
        for shift in 0..3_usize {
            let padded = [&vec![0; shift][..], bytes].concat();
            let from = [0, 2, 3][shift];
            let until = padded.len() * 8 / 6;
            for text in [STANDARD_NO_PAD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)] {
                self.needle(format!("{name}, base64"), text.as_bytes()[from..until].to_vec());
            }
        }
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        self.needle(format!("{name}, hex"), hex.to_uppercase().into_bytes());
        self.needle(format!("{name}, hex"), hex.into_bytes());
    }

    fn needle(&mut self, name: String, needle: Vec<u8>) {
        let start: [u8; 4] = needle[..4].try_into().unwrap();
        self.by_start.entry(start).or_default().push((name, needle));
    }

    /// The names of those that stand in `hay`, or in what is compressed inside it.
    pub(crate) fn found_in(&self, hay: &[u8]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        self.search(hay, 3, &mut found);
        found
    }

    fn search(&self, hay: &[u8], depth: u8, found: &mut BTreeSet<String>) {
        for at in 0..hay.len().saturating_sub(3) {
            let rest = &hay[at..];
            let start: [u8; 4] = rest[..4].try_into().unwrap();
            for (name, needle) in self.by_start.get(&start).into_iter().flatten() {
                if rest.starts_with(needle) {
                    found.insert(name.clone());
                }
            }
            if depth > 0
                && let Some(inside) = inflated(rest)
            {
                self.search(&inside, depth - 1, found);
            }
        }
    }
}

/// What is compressed at the beginning of these bytes, if something is; as far as it goes.
fn inflated(bytes: &[u8]) -> Option<Vec<u8>> {
    const MOST: u64 = 16 << 20;
    let mut out = Vec::new();
    match bytes {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(bytes).ok()?;
            // An error behind some good bytes leaves those.
            let _ = decoder.single_frame().take(MOST).read_to_end(&mut out);
        }
        #[cfg(feature = "cli")]
        [0x1f, 0x8b, 8, ..] => {
            let _ = flate2::read::GzDecoder::new(bytes).take(MOST).read_to_end(&mut out);
        }
        #[cfg(feature = "cli")]
        [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..] => {
            let _ = flate2::read::ZlibDecoder::new(bytes).take(MOST).read_to_end(&mut out);
        }
        _ => return None,
    }
    (!out.is_empty()).then_some(out)
}
