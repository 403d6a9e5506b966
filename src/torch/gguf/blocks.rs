//! Blocks of quantised numbers, taken from bytes and turned back to f32 by `ggml-quants`.

use ggml_quants::{DataBlock, DeltaMin, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Quantize, bf16, f16};
use gguf_rs_lib::format::GGUFTensorType;

use crate::torch::weights_error::WeightsError;

/// Bytes and values of a block of this number format.
///
/// # Errors
/// [`WeightsError::Unsupported`] for a format that isn't turned back here.
pub(super) fn block_bytes(
    name: &str,
    kind: GGUFTensorType,
) -> Result<(usize, usize), WeightsError> {
    Ok(match kind {
        GGUFTensorType::F32 => (4, 1),
        GGUFTensorType::F16 | GGUFTensorType::BF16 => (2, 1),
        GGUFTensorType::Q4_0 => (18, Q4_0::COUNT),
        GGUFTensorType::Q4_1 => (20, Q4_1::COUNT),
        GGUFTensorType::Q5_0 => (22, Q5_0::COUNT),
        GGUFTensorType::Q5_1 => (24, Q5_1::COUNT),
        GGUFTensorType::Q8_0 => (34, Q8_0::COUNT),
        other => {
            let found =
                format!("{} of {}", other.name(), name.chars().take(64).collect::<String>());
            let known = "expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0";
            return Err(WeightsError::Unsupported { what: "number format", found, known });
        }
    })
}

/// The values of a tensor.
///
/// # Errors
/// As [`block_bytes`].
pub(super) fn dequantise(
    name: &str,
    kind: GGUFTensorType,
    bytes: &[u8],
) -> Result<Vec<f32>, WeightsError> {
    let (size, count) = block_bytes(name, kind)?;
    let mut out = Vec::with_capacity(bytes.len() / size * count);
    match kind {
        GGUFTensorType::F32 => {
            out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        GGUFTensorType::F16 => {
            out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()));
        }
        GGUFTensorType::BF16 => {
            out.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()));
        }
        GGUFTensorType::Q4_0 => {
            for [d0, d1, quants @ ..] in bytes.as_chunks::<18>().0 {
                let delta = f16::from_le_bytes([*d0, *d1]);
                push(&mut out, &Q4_0 { delta, quants: *quants });
            }
        }
        GGUFTensorType::Q4_1 => {
            for [d0, d1, m0, m1, quants @ ..] in bytes.as_chunks::<20>().0 {
                let delta_min = delta_min([*d0, *d1], [*m0, *m1]);
                push(&mut out, &Q4_1 { delta_min, quants: *quants });
            }
        }
        GGUFTensorType::Q5_0 => {
            for [d0, d1, h0, h1, h2, h3, ql @ ..] in bytes.as_chunks::<22>().0 {
                let delta = f16::from_le_bytes([*d0, *d1]);
                push(&mut out, &Q5_0 { delta, qh: [*h0, *h1, *h2, *h3], ql: *ql });
            }
        }
        GGUFTensorType::Q5_1 => {
            for [d0, d1, m0, m1, h0, h1, h2, h3, ql @ ..] in bytes.as_chunks::<24>().0 {
                let delta_min = delta_min([*d0, *d1], [*m0, *m1]);
                push(&mut out, &Q5_1 { delta_min, qh: [*h0, *h1, *h2, *h3], ql: *ql });
            }
        }
        GGUFTensorType::Q8_0 => {
            for [d0, d1, quants @ ..] in bytes.as_chunks::<34>().0 {
                let delta = f16::from_le_bytes([*d0, *d1]);
                push(&mut out, &Q8_0 { delta, quants: quants.map(u8::cast_signed) });
            }
        }
        _ => {} // block_bytes refused it
    }
    Ok(out)
}

fn delta_min(delta: [u8; 2], min: [u8; 2]) -> DeltaMin {
    DeltaMin { delta: f16::from_le_bytes(delta), min: f16::from_le_bytes(min) }
}

fn push(out: &mut Vec<f32>, block: &impl Quantize<f32, 32>) {
    out.extend_from_slice(&block.dequantize());
}
