//! What crosses the cut of a split model: activations one way, their gradient the other.
//!
//! ```text
//! int8     [scale, bf16 little endian | width codes, i8]  a token
//! f32      [width values, little endian]                  a token
//! ```
//! Each token has a scale of its own, since a few tokens are much longer than the others and would cost
//! them all their bits. The scale is rounded *up* to bf16, so that the largest value of a token always
//! has a code. bf16 has the range of f32: gradients are small, and none is lost below it.
//!
//! Nothing here is private: activations tell much about the input. They stay inside a site's zone, see
//! `trust::open`.
//!
//! # Source
//! A scale a token for what crosses a cut: Zheng et al. 2023, arXiv:2305.18469, compare it with sparser
//! codings.

use half::bf16;

use super::LearnError;

/// Activations at a cut, or their gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Activations {
    /// Sizes, outermost first; the last is the width of a token.
    pub shape: Vec<usize>,
    /// Row-major, `shape`'s product many.
    pub data: Vec<f32>,
}

/// How activations travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationCoding {
    /// As they are: exact.
    F32,
    /// Eight bits a value and a scale a token.
    Int8,
}

impl Activations {
    /// Most dimensions.
    pub const MAX_DIMS: usize = 4;

    /// Takes values of this shape.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when shape and values disagree.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self, LearnError> {
        let whole = Self { shape, data };
        if whole.len() == Some(whole.data.len()) {
            return Ok(whole);
        }
        Err(LearnError::OutOfRange {
            what: "values of activations",
            expected: format!("as many as shape {:?} has", whole.shape),
            actual: whole.data.len().to_string(),
        })
    }

    /// Encodes the values; the shape travels beside them.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`]; [`LearnError::OutOfRange`] when a value is beyond any scale.
    ///
    /// # Examples
    /// ```
    /// use gaisnet::learn::{ActivationCoding, Activations};
    ///
    /// let token = Activations::new(vec![1, 3], vec![127.0, -63.6, 0.2]).unwrap();
    /// let bytes = token.encode(ActivationCoding::Int8).unwrap();
    /// assert_eq!(bytes, [0x80, 0x3f, 127, 192, 0]); // bf16 1.0, then 127 -64 0
    /// ```
    pub fn encode(&self, coding: ActivationCoding) -> Result<Vec<u8>, LearnError> {
        if let Some(index) = self.data.iter().position(|x| !x.is_finite()) {
            return Err(LearnError::NotFinite { name: "activations".into(), index });
        }
        let mut bytes = Vec::with_capacity(coding.num_bytes(&self.shape).unwrap_or_default());
        match coding {
            ActivationCoding::F32 => {
                bytes.extend(self.data.iter().flat_map(|x| x.to_le_bytes()));
            }
            ActivationCoding::Int8 => {
                for token in self.data.chunks(self.width()) {
                    let scale = scale_of(token)?;
                    bytes.extend(scale.to_le_bytes());
                    bytes.extend(token.iter().map(|x| code(*x, scale.to_f32()).to_le_bytes()[0]));
                }
            }
        }
        Ok(bytes)
    }

    /// Decodes values of a shape that was agreed on; the bytes may come from an enemy.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] for a shape that none has; [`LearnError::WrongLength`];
    /// [`LearnError::NotFinite`].
    pub fn decode(
        coding: ActivationCoding,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<Self, LearnError> {
        let expected = coding.num_bytes(shape).ok_or_else(|| LearnError::OutOfRange {
            what: "shape of activations",
            expected: format!("1 to {} dimensions without a 0, that fit memory", Self::MAX_DIMS),
            actual: format!("{shape:?}"),
        })?;
        if bytes.len() != expected {
            let actual = bytes.len();
            return Err(LearnError::WrongLength { what: "activations", expected, actual });
        }
        let mut data = Vec::with_capacity(bytes.len());
        match coding {
            ActivationCoding::F32 => {
                let (words, _) = bytes.as_chunks::<4>();
                data.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
            }
            ActivationCoding::Int8 => {
                let width = shape.last().copied().unwrap_or(1);
                for token in bytes.chunks(width + SCALE_BYTES) {
                    let Some((scale, codes)) = token.split_first_chunk::<SCALE_BYTES>() else {
                        continue;
                    };
                    let scale = bf16::from_le_bytes(*scale).to_f32();
                    data.extend(codes.iter().map(|b| f32::from(i8::from_le_bytes([*b])) * scale));
                }
            }
        }
        if let Some(index) = data.iter().position(|x| !x.is_finite()) {
            return Err(LearnError::NotFinite { name: "activations".into(), index });
        }
        Ok(Self { shape: shape.to_vec(), data })
    }

    /// Tokens: all dimensions but the last.
    pub fn tokens(&self) -> usize {
        self.data.len() / self.width()
    }

    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1).max(1)
    }

    fn len(&self) -> Option<usize> {
        num_values(&self.shape)
    }
}

impl ActivationCoding {
    /// Bytes of activations of this shape; none for a shape that activations can't have.
    pub fn num_bytes(self, shape: &[usize]) -> Option<usize> {
        let values = num_values(shape)?;
        let width = shape.last().copied()?;
        match self {
            Self::F32 => values.checked_mul(4),
            Self::Int8 => (values / width).checked_mul(width.checked_add(SCALE_BYTES)?),
        }
    }
}

fn num_values(shape: &[usize]) -> Option<usize> {
    if shape.is_empty() || shape.len() > Activations::MAX_DIMS || shape.contains(&0) {
        return None;
    }
    shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d))
}

/// Smallest bf16 that is at least max|x| / 127.
fn scale_of(token: &[f32]) -> Result<bf16, LearnError> {
    let most = token.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let exact = most / LARGEST_CODE;
    let near = bf16::from_f32(exact);
    let up = if near.to_f32() < exact { bf16::from_bits(near.to_bits() + 1) } else { near };
    // The decoder must find each value finite.
    if (up.to_f32() * LARGEST_CODE).is_finite() {
        return Ok(up);
    }
    Err(LearnError::OutOfRange {
        what: "an activation",
        expected: "at most 1.2e38".into(),
        actual: most.to_string(),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the scale puts it into -127..=127")]
fn code(x: f32, scale: f32) -> i8 {
    if scale > 0.0 { (x / scale).round().clamp(-LARGEST_CODE, LARGEST_CODE) as i8 } else { 0 }
}

const LARGEST_CODE: f32 = 127.0;
const SCALE_BYTES: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens() -> impl Strategy<Value = Activations> {
        (1_usize..5, 1_usize..40, -30_i32..30).prop_flat_map(|(n, width, power)| {
            let size = 2.0_f32.powi(power);
            proptest::collection::vec(-size..size, n * width)
                .prop_map(move |data| Activations::new(vec![n, width], data).unwrap())
        })
    }

    proptest! {
        #[test]
        fn f32_comes_back_as_it_was(a in tokens()) {
            let bytes = a.encode(ActivationCoding::F32).unwrap();
            prop_assert_eq!(Activations::decode(ActivationCoding::F32, &a.shape, &bytes).unwrap(), a);
        }

        #[test]
        fn int8_errs_by_half_of_a_tokens_own_scale_at_most(a in tokens()) {
            let bytes = a.encode(ActivationCoding::Int8).unwrap();
            let back = Activations::decode(ActivationCoding::Int8, &a.shape, &bytes).unwrap();
            let width = a.shape[1];
            for (token, got) in a.data.chunks(width).zip(back.data.chunks(width)) {
                let most = token.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                // A bf16 has 8 bits: rounding up adds 1/128 at most.
                let bound = most / 127.0 * (1.0 + 1.0 / 128.0) * 0.5 * 1.0001 + f32::MIN_POSITIVE;
                for (x, y) in token.iter().zip(got) {
                    prop_assert!((x - y).abs() <= bound, "{} {} {}", x, y, bound);
                }
            }
        }

        #[test]
        fn what_was_decoded_encodes_to_the_same_values_again(a in tokens()) {
            let decode = |bytes: &[u8]| {
                Activations::decode(ActivationCoding::Int8, &a.shape, bytes).unwrap()
            };
            let once = decode(&a.encode(ActivationCoding::Int8).unwrap());
            let twice = decode(&once.encode(ActivationCoding::Int8).unwrap());
            let pairs = once.data.iter().zip(&twice.data);
            prop_assert!(pairs.into_iter().all(|(x, y)| (x - y).abs() <= x.abs() * 0.01 + 1e-30));
        }

        #[test]
        fn no_bytes_and_no_shape_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            shape in proptest::collection::vec(prop_oneof![0_usize..20, Just(usize::MAX)], 0..6),
        ) {
            for coding in [ActivationCoding::F32, ActivationCoding::Int8] {
                if let Ok(a) = Activations::decode(coding, &shape, &bytes) {
                    prop_assert!(a.data.iter().all(|x| x.is_finite()));
                    prop_assert_eq!(coding.num_bytes(&shape), Some(bytes.len()));
                }
            }
        }
    }

    #[test]
    fn one_long_token_takes_nothing_from_the_others() {
        let a = Activations::new(vec![2, 2], vec![1000.0, -1000.0, 0.01, 0.005]).unwrap();
        let bytes = a.encode(ActivationCoding::Int8).unwrap();
        let back = Activations::decode(ActivationCoding::Int8, &a.shape, &bytes).unwrap();
        assert!((back.data[3] - 0.005).abs() < 1e-4, "{back:?}");
        let zeros = Activations::new(vec![1, 3], vec![0.0; 3]).unwrap();
        let bytes = zeros.encode(ActivationCoding::Int8).unwrap();
        let back = Activations::decode(ActivationCoding::Int8, &[1, 3], &bytes).unwrap();
        assert_eq!(back, zeros);
    }

    #[test]
    fn hostile_bytes_are_refused_and_their_twin_is_taken() {
        let int8 = ActivationCoding::Int8;
        let kind = |shape: &[usize], bytes: &[u8]| {
            Activations::decode(int8, shape, bytes).map_or_else(|e| e.kind(), |_| "ok")
        };
        assert_eq!(kind(&[1, 2], &[0x80, 0x3f, 1, 2]), "ok");
        assert_eq!(kind(&[1, 2], &[0x80, 0x3f, 1]), "wrong_length");
        assert_eq!(kind(&[1, 2], &[0x80, 0x3f, 1, 2, 3]), "wrong_length");
        assert_eq!(kind(&[1, 2], &[0x80, 0x7f, 1, 2]), "not_finite", "an infinite scale");
        assert_eq!(kind(&[1, 2], &[0xc0, 0x7f, 0, 0]), "not_finite", "NaN");
        assert_eq!(kind(&[1, 2], &[0x7f, 0x7f, 127, 0]), "not_finite", "it overflows");
        for shape in [&[] as &[usize], &[0, 2], &[1; 5], &[usize::MAX, 2], &[2, usize::MAX]] {
            assert_eq!(kind(shape, &[0x80, 0x3f, 1, 2]), "out_of_range", "{shape:?}");
        }
        let nan = Activations::new(vec![1, 1], vec![f32::NAN]).unwrap();
        assert_eq!(nan.encode(int8).unwrap_err().kind(), "not_finite");
        let huge = Activations::new(vec![1, 1], vec![f32::MAX]).unwrap();
        assert!(matches!(huge.encode(int8), Ok(_) | Err(LearnError::OutOfRange { .. })));
        assert!(Activations::new(vec![2, 2], vec![0.0; 3]).is_err());
    }
}
