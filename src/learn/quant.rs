//! Blockwise symmetric quantisation of tensor sets to 8 or 4 bits a value.
//!
//! ```text
//! encoded = scales of all blocks, f16 little endian | codes of tensor 1 | codes of tensor 2 | ...
//! value   = code * scale of its block
//! ```
//! A block never crosses a tensor's border; int4 puts two codes in a byte, the first one low, and
//! each tensor starts a byte. Scales and codes lie apart so that zstd finds more in them.
//!
//! A scale is rounded *up* to f16, so that the largest value of a block always has a code. Below
//! 2^-14 f16 is as coarse as 2^-24: blocks whose values are all under some 1e-5 keep few bits, and
//! [`super::ErrorFeedback`] carries what they lose into the next round.
//!
//! Of int8's codes the encoder writes only -80 to 80; the decoder takes all. The largest value of a block
//! is an outlier, so the entropy stage of zstd pays for each code that is hardly used: with 161 codes an
//! adapter's delta packs 7 % smaller than with 255, for a step that is 1.6 times as wide and still a
//! twelfth of int4's. A whole signed message of the smallest adapter is below 1/3.8 of its values so.
//!
//! The idea of a scale a block: Dettmers et al. 2022, arXiv:2110.02861.

use half::f16;

use super::tensors::num_values;
use super::{Layout, LearnError, Tensor, TensorSet};

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Codes -127 to 127, one a byte; the encoder goes to 80.
    Int8,
    /// Codes -7 to 7, two a byte.
    Int4,
}

impl Width {
    /// The largest code that is written.
    fn max_code(self) -> f32 {
        match self {
            Self::Int8 => 80.0,
            Self::Int4 => 7.0,
        }
    }

    fn code_bytes(self, values: usize) -> usize {
        match self {
            Self::Int8 => values,
            Self::Int4 => values.div_ceil(2),
        }
    }
}

/// Encodes and decodes tensor sets; both sides need the same width, block and layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantizer {
    width: Width,
    block: usize,
}

impl Quantizer {
    /// Values a block when nothing else is asked for.
    pub const DEFAULT_BLOCK: usize = 128;

    /// Takes `block` values a scale.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] unless `block` is 64 to 256.
    pub fn new(width: Width, block: usize) -> Result<Self, LearnError> {
        if (64..=256).contains(&block) {
            return Ok(Self { width, block });
        }
        Err(LearnError::OutOfRange {
            what: "quantisation block",
            expected: "64 to 256 values".into(),
            actual: block.to_string(),
        })
    }

    /// Encodes each value with an error of at most half of its block's scale.
    ///
    /// # Errors
    /// [`LearnError::NotFinite`] for NaN and infinite values, [`LearnError::OutOfRange`] for
    /// values whose scale is beyond f16 (above 5,240,320 with int8, 458,528 with int4).
    /// # Examples
    /// ```
    /// use gaisnet::learn::{Quantizer, Tensor, TensorSet, Width};
    /// let data = vec![-7.0, 3.4, 3.6, 0.0, 7.0];
    /// let set = TensorSet::new(vec![Tensor { name: "w".into(), shape: vec![5], data }])?;
    /// let quantizer = Quantizer::new(Width::Int4, 64)?; // scale 7 / 7 = 1: codes are rounded values
    /// let bytes = quantizer.encode(&set)?;
    /// assert_eq!(bytes, [0x00, 0x3c, 0x39, 0x04, 0x07]); // f16 1.0, then -7 3, 4 0, 7
    /// let back = quantizer.decode(&set.layout(), &bytes)?;
    /// assert_eq!(back.tensors()[0].data, [-7.0, 3.0, 4.0, 0.0, 7.0]);
    /// # Ok::<(), gaisnet::learn::LearnError>(())
    /// ```
    pub fn encode(&self, set: &TensorSet) -> Result<Vec<u8>, LearnError> {
        set.check_finite()?;
        let mut encoded = Vec::new();
        let mut codes = Vec::new();
        for tensor in set.tensors() {
            let start = codes.len();
            for block in tensor.data.chunks(self.block) {
                let scale = self.scale(block)?;
                encoded.extend_from_slice(&scale.to_le_bytes());
                let step = scale.to_f32();
                codes.extend(block.iter().map(|x| code(*x, step)));
            }
            if self.width == Width::Int4 {
                pack_nibbles(&mut codes, start);
            }
        }
        encoded.extend(codes.iter().map(|code| code.cast_unsigned()));
        Ok(encoded)
    }

    /// Length of the encoding of a set with this layout.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when the layout asks for more than a machine can count.
    pub fn encoded_len(&self, layout: &Layout) -> Result<usize, LearnError> {
        let (scales, codes) = self.section_lens(layout)?;
        scales.checked_add(codes).ok_or_else(too_big)
    }

    /// Decodes what [`Quantizer::encode`] made of a set with this layout.
    ///
    /// Bytes and layout may come from an enemy: the length is checked before anything is
    /// allocated, and a set takes at most 8 times the bytes that came.
    ///
    /// # Errors
    /// [`LearnError::WrongLength`] when the bytes are too few or too many,
    /// [`LearnError::OutOfRange`] when a scale is negative, infinite or NaN, or the layout is
    /// absurd, [`LearnError::LayoutMismatch`] when a name comes twice.
    pub fn decode(&self, layout: &Layout, encoded: &[u8]) -> Result<TensorSet, LearnError> {
        let (scales_len, codes_len) = self.section_lens(layout)?;
        let expected = scales_len.checked_add(codes_len).ok_or_else(too_big)?;
        let wrong_length = || LearnError::WrongLength {
            what: "quantised tensors",
            expected,
            actual: encoded.len(),
        };
        if encoded.len() != expected {
            return Err(wrong_length());
        }
        let (scales, mut codes) = encoded.split_at_checked(scales_len).ok_or_else(wrong_length)?;
        let (scales, _) = scales.as_chunks::<2>();
        let mut scales = scales.iter().map(|bytes| f16::from_le_bytes(*bytes));
        let mut tensors = Vec::with_capacity(layout.0.len());
        for (name, shape) in &layout.0 {
            let values = num_values(shape)?;
            let (own, rest) =
                codes.split_at_checked(self.width.code_bytes(values)).ok_or_else(wrong_length)?;
            codes = rest;
            let mut data = self.unpack(own, values);
            for block in data.chunks_mut(self.block) {
                let scale = checked_scale(scales.next().ok_or_else(wrong_length)?)?;
                for x in block {
                    *x *= scale;
                }
            }
            tensors.push(Tensor { name: name.clone(), shape: shape.clone(), data });
        }
        TensorSet::new(tensors)
    }

    /// Bytes of all scales and of all codes.
    fn section_lens(&self, layout: &Layout) -> Result<(usize, usize), LearnError> {
        let (mut scales, mut codes) = (0_usize, 0_usize);
        for (_, shape) in &layout.0 {
            let values = num_values(shape)?;
            let own_scales = values.div_ceil(self.block) * 2;
            scales = scales.checked_add(own_scales).ok_or_else(too_big)?;
            codes = codes.checked_add(self.width.code_bytes(values)).ok_or_else(too_big)?;
        }
        Ok((scales, codes))
    }

    /// Smallest f16 that is at least max|x| / largest code.
    fn scale(&self, block: &[f32]) -> Result<f16, LearnError> {
        let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let wanted = largest / self.width.max_code();
        let nearest = f16::from_f32(wanted);
        let scale = if nearest.to_f32() < wanted {
            f16::from_bits(nearest.to_bits() + 1) // the next f16; after the last comes infinity
        } else {
            nearest
        };
        if scale.is_finite() {
            return Ok(scale);
        }
        Err(LearnError::OutOfRange {
            what: "value to quantise",
            expected: format!("at most {}", self.width.max_code() * f16::MAX.to_f32()),
            actual: largest.to_string(),
        })
    }

    /// Codes as f32, still without their scales.
    fn unpack(&self, codes: &[u8], values: usize) -> Vec<f32> {
        match self.width {
            Width::Int8 => codes.iter().map(|byte| f32::from(byte.cast_signed())).collect(),
            Width::Int4 => {
                let mut data = Vec::with_capacity(codes.len() * 2);
                for byte in codes {
                    let byte = byte.cast_signed();
                    data.push(f32::from((byte << 4) >> 4)); // the shift back extends the sign
                    data.push(f32::from(byte >> 4));
                }
                data.truncate(values);
                data
            }
        }
    }
}

impl Default for Quantizer {
    fn default() -> Self {
        Self { width: Width::Int8, block: Self::DEFAULT_BLOCK }
    }
}

/// Nearest code. The scale was rounded up, so the quotient is within the codes.
#[expect(clippy::cast_possible_truncation, reason = "the quotient is within -80 to 80")]
fn code(x: f32, scale: f32) -> i8 {
    if scale > 0.0 { (x / scale).round_ties_even() as i8 } else { 0 }
}

/// Replaces the codes from `start` on by half as many bytes.
fn pack_nibbles(codes: &mut Vec<i8>, start: usize) {
    let packed: Vec<i8> = codes
        .get(start..)
        .unwrap_or_default()
        .chunks(2)
        .map(|pair| match pair {
            [low, high] => (low & 0x0f) | (high << 4),
            [low] => low & 0x0f,
            _ => 0,
        })
        .collect();
    codes.truncate(start);
    codes.extend(packed);
}

fn checked_scale(scale: f16) -> Result<f32, LearnError> {
    if scale.is_finite() && scale.is_sign_positive() {
        return Ok(scale.to_f32());
    }
    Err(LearnError::OutOfRange {
        what: "scale of a block",
        expected: "a finite number, not negative".into(),
        actual: scale.to_string(),
    })
}

fn too_big() -> LearnError {
    LearnError::OutOfRange {
        what: "bytes of a quantised set",
        expected: "a number that fits a usize".into(),
        actual: "more".into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(parts: &[&[f32]]) -> TensorSet {
        let tensor = |(at, data): (usize, &&[f32])| Tensor {
            name: format!("t{at:02}"),
            shape: vec![data.len()],
            data: data.to_vec(),
        };
        TensorSet::new(parts.iter().enumerate().map(tensor).collect()).unwrap()
    }

    fn quantizers() -> [Quantizer; 3] {
        [
            Quantizer::default(),
            Quantizer::new(Width::Int4, 64).unwrap(),
            Quantizer::new(Width::Int8, 256).unwrap(),
        ]
    }

    #[test]
    fn an_adapter_takes_an_eighth_with_int4_and_a_quarter_with_int8() {
        let layout = Layout(vec![("w".into(), vec![460_800])]);
        let bytes = |width| {
            Quantizer::new(width, Quantizer::DEFAULT_BLOCK).unwrap().encoded_len(&layout).unwrap()
        };
        assert_eq!(bytes(Width::Int8), 460_800 + 2 * 3_600); // 1/3.94 of f32
        assert_eq!(bytes(Width::Int4), 230_400 + 2 * 3_600); // 1/7.76
    }

    #[test]
    fn int8_is_written_up_to_80_and_read_up_to_127() {
        let values = set(&[&[80.0, -80.0, 39.6, 0.4]]); // scale 80 / 80 = 1
        let bytes = Quantizer::default().encode(&values).unwrap();
        assert_eq!(bytes, [0x00, 0x3c, 80, 0xb0, 40, 0]);
        let older = [0x00, 0x3c, 127, 0x81, 40, 0]; // of an encoder that goes to 127
        let back = Quantizer::default().decode(&values.layout(), &older).unwrap();
        assert_eq!(back, set(&[&[127.0, -127.0, 40.0, 0.0]]));
    }

    #[test]
    fn blocks_outside_64_to_256_are_refused() {
        for block in [0, 63, 257] {
            assert_eq!(Quantizer::new(Width::Int8, block).unwrap_err().kind(), "out_of_range");
        }
    }

    #[test]
    fn nan_infinity_and_values_beyond_the_scale_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Quantizer::default().encode(&set(&[&[0.0], &[1.0, bad]])).unwrap_err();
            assert_eq!(error, LearnError::NotFinite { name: "t01".into(), index: 1 });
        }
        let error = Quantizer::default().encode(&set(&[&[5.3e6]])).unwrap_err();
        assert_eq!(error.kind(), "out_of_range");
        assert!(Quantizer::default().encode(&set(&[&[5.2e6]])).is_ok());
    }

    #[test]
    fn a_block_of_zeros_and_an_empty_tensor_come_back() {
        for quantizer in quantizers() {
            let zeros = set(&[&[0.0; 300], &[], &[0.0]]);
            let bytes = quantizer.encode(&zeros).unwrap();
            assert_eq!(quantizer.decode(&zeros.layout(), &bytes).unwrap(), zeros);
        }
    }

    #[test]
    fn bytes_cut_short_or_with_a_tail_are_refused() {
        for quantizer in quantizers() {
            let values = set(&[&[1.0; 70], &[2.0; 3]]);
            let mut bytes = quantizer.encode(&values).unwrap();
            for len in 0..bytes.len() {
                let error = quantizer.decode(&values.layout(), &bytes[..len]).unwrap_err();
                assert_eq!(error.kind(), "wrong_length");
            }
            bytes.push(0);
            let error = quantizer.decode(&values.layout(), &bytes).unwrap_err();
            assert_eq!(error.kind(), "wrong_length");
        }
    }

    #[test]
    fn layouts_that_claim_more_than_came_are_refused_before_any_allocation() {
        let huge =
            |shape: Vec<usize>| Layout(vec![("a".into(), shape.clone()), ("b".into(), shape)]);
        for shape in [vec![usize::MAX], vec![usize::MAX, 2], vec![1 << 40], vec![usize::MAX, 2, 0]]
        {
            for quantizer in quantizers() {
                assert!(quantizer.decode(&huge(shape.clone()), &[0; 64]).is_err(), "{shape:?}");
            }
        }
    }

    #[test]
    fn scales_that_are_negative_or_not_finite_are_refused() {
        let layout = set(&[&[1.0]]).layout();
        for scale in [f16::NAN, f16::INFINITY, f16::from_f32(-1.0), f16::NEG_ZERO] {
            let [low, high] = scale.to_le_bytes();
            let error = Quantizer::default().decode(&layout, &[low, high, 1]).unwrap_err();
            assert_eq!(error.kind(), "out_of_range");
        }
        let [low, high] = f16::from_f32(2.0).to_le_bytes();
        let back = Quantizer::default().decode(&layout, &[low, high, 3]).unwrap();
        assert_eq!(back, set(&[&[6.0]]), "the valid twin");
    }

    proptest! {
        #[test]
        fn the_error_is_at_most_half_a_scale(
            values in prop::collection::vec(
                prop_oneof![-1e-6_f32..1e-6, -1e-3_f32..1e-3, -4e5_f32..4e5], 1..600,
            ),
            which in 0..3_usize,
        ) {
            let quantizer = quantizers()[which];
            let values = set(&[&values, &values[..1]]);
            let bytes = quantizer.encode(&values).unwrap();
            prop_assert_eq!(bytes.len(), quantizer.encoded_len(&values.layout()).unwrap());
            let back = quantizer.decode(&values.layout(), &bytes).unwrap();
            for (tensor, decoded) in values.tensors().iter().zip(back.tensors()) {
                let blocks = tensor.data.chunks(quantizer.block);
                for (block, decoded) in blocks.zip(decoded.data.chunks(quantizer.block)) {
                    let scale = quantizer.scale(block).unwrap().to_f32();
                    let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                    // rounded up by one f16 step at most: 2^-10 of it, or 2^-24 when subnormal
                    let ideal = largest / quantizer.width.max_code();
                    prop_assert!(scale >= ideal && scale <= ideal * 1.001 + 6e-8);
                    for (x, q) in block.iter().zip(decoded) {
                        prop_assert!((x - q).abs() <= scale * 0.500_01, "{x} {q} {scale}");
                    }
                }
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            shapes in prop::collection::vec(prop::collection::vec(any::<usize>(), 0..3), 0..4),
            sizes in prop::collection::vec(0..40_usize, 0..4),
        ) {
            let named = |(at, shape)| (format!("t{at}"), shape);
            let absurd = Layout(shapes.into_iter().enumerate().map(named).collect());
            let small =
                Layout(sizes.into_iter().map(|n| vec![n]).enumerate().map(named).collect());
            for quantizer in quantizers() {
                let _ = quantizer.decode(&absurd, &bytes);
                if let Ok(set) = quantizer.decode(&small, &bytes) {
                    prop_assert!(set.check_finite().is_ok());
                }
            }
        }
    }
}
