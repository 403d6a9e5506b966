//! A tensor's numbers as a slice, for the one kernel of our own ([`super::few_rows`]).
//!
//! One of two places with `unsafe`: libtorch hands out its memory as a pointer.

use tch::{Device, Kind, Tensor};

use crate::learn::LearnError;

/// A matrix, or a vector, that nobody writes to any more.
#[derive(Debug)]
pub struct Frozen {
    tensor: Tensor,
    bf16: bool,
    len: usize,
}

/// Numbers as they lie in memory.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// 32 bits.
    F32(&'a [f32]),
    /// bfloat16: the upper half of an f32's bits.
    Bf16(&'a [u16]),
}

// SAFETY: what a `Frozen` gives is read only, and what reads it here (the pointer, the slices) keeps no
// state. libtorch counts references to a tensor atomically.
#[expect(unsafe_code, reason = "see above; threads share the base's matrices")]
unsafe impl Sync for Frozen {}

impl Frozen {
    /// Takes a handle to f32 or bf16 numbers in this machine's memory; copies only what isn't contiguous.
    ///
    /// Whoever has another handle doesn't write through it from now on: a base is frozen, and an adapter
    /// in use is a copy of its own.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] for numbers of another kind or on another device.
    pub fn new(tensor: &Tensor) -> Result<Self, LearnError> {
        let tensor = tensor.f_detach()?.f_contiguous()?;
        let bf16 = match (tensor.device(), tensor.kind()) {
            (Device::Cpu, Kind::Float) => false,
            (Device::Cpu, Kind::BFloat16) => true,
            (device, kind) => {
                return Err(LearnError::OutOfRange {
                    what: "numbers to read",
                    expected: "f32 or bf16 on the CPU".into(),
                    actual: format!("{kind:?} on {device:?}"),
                });
            }
        };
        let len = tensor.numel();
        Ok(Self { tensor, bf16, len })
    }

    /// Whether both are the same memory.
    pub fn is(&self, other: &Self) -> bool {
        let place = |of: &Self| (of.tensor.data_ptr(), of.len, of.bf16);
        place(self) == place(other)
    }

    /// The numbers, row by row.
    #[expect(unsafe_code, reason = "libtorch's memory as a slice")]
    pub fn numbers(&self) -> Numbers<'_> {
        let start = self.tensor.data_ptr();
        if self.len == 0 || start.is_null() {
            return Numbers::F32(&[]);
        }
        // SAFETY: the tensor is contiguous and holds `len` numbers of this kind, aligned by libtorch to 64
        // bytes or, as a part of another, to its numbers; it lives as long as `self`, and nobody writes.
        unsafe {
            if self.bf16 {
                Numbers::Bf16(std::slice::from_raw_parts(start.cast(), self.len))
            } else {
                Numbers::F32(std::slice::from_raw_parts(start.cast(), self.len))
            }
        }
    }
}

impl Numbers<'_> {
    /// How many.
    pub fn len(self) -> usize {
        match self {
            Self::F32(all) => all.len(),
            Self::Bf16(all) => all.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Those from `start` to before `end`; none where the range isn't inside.
    pub fn part(self, start: usize, end: usize) -> Self {
        match self {
            Self::F32(all) => Self::F32(all.get(start..end).unwrap_or_default()),
            Self::Bf16(all) => Self::Bf16(all.get(start..end).unwrap_or_default()),
        }
    }

    /// As f32.
    pub fn to_vec(self) -> Vec<f32> {
        match self {
            Self::F32(all) => all.to_vec(),
            Self::Bf16(all) => all.iter().map(|bits| f32_of(*bits)).collect(),
        }
    }
}

/// The f32 of a bfloat16.
#[expect(clippy::inline_always, reason = "see few_rows.rs")]
#[inline(always)]
pub fn f32_of(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_where_they_lie_also_of_a_part_or_a_turned_matrix() {
        let whole = Tensor::from_slice(&[1.0_f32, -2.5, 3.0, 4.0, 0.5, -0.0]).reshape([3, 2]);
        let read = |tensor: &Tensor| Frozen::new(tensor).unwrap().numbers().to_vec();
        assert_eq!(read(&whole), [1.0, -2.5, 3.0, 4.0, 0.5, -0.0]);
        assert_eq!(read(&whole.narrow(0, 1, 2)), [3.0, 4.0, 0.5, -0.0]);
        assert_eq!(read(&whole.tr()), [1.0, 3.0, 0.5, -2.5, 4.0, -0.0]);
        assert_eq!(read(&whole.to_kind(Kind::BFloat16)), [1.0, -2.5, 3.0, 4.0, 0.5, -0.0]);
        assert!(read(&whole.narrow(0, 0, 0)).is_empty());
        let numbers = Frozen::new(&whole).unwrap();
        let same = |tensor: &Tensor| numbers.is(&Frozen::new(tensor).unwrap());
        assert!(same(&whole.shallow_clone()) && !same(&whole.copy()));
        assert!(!same(&whole.narrow(0, 0, 2)), "a part begins at the same place");
        assert_eq!(numbers.numbers().part(2, 4).to_vec(), [3.0, 4.0]);
        assert!(numbers.numbers().part(5, 9).is_empty());
    }

    #[test]
    fn other_kinds_are_refused() {
        let error = Frozen::new(&Tensor::from_slice(&[1_i64])).unwrap_err().to_string();
        assert!(error.contains("Int64"), "{error}");
    }
}
