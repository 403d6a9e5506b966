//! One token times a matrix: what generation does all day, and bound by reading the matrix.

use tch::{Kind, Tensor};

use crate::learn::LearnError;

/// `x W^T` for one token `[1, .., input]`, as `[1, .., out]`, for a frozen `weight` `[out, input]`.
///
/// libtorch's general product brings a bf16 matrix into another order first and reads it at half of the
/// speed of memory. As a stack of as many slices as there are threads it goes through a kernel that
/// doesn't (docs/benchmarks.md); f32 is quickest as matrix times vector.
///
/// # Errors
/// [`LearnError::Engine`] when shapes differ.
pub fn one_token(x: &Tensor, weight: &Tensor) -> Result<Tensor, LearnError> {
    let (out, input) = weight.size2()?;
    let mut shape = x.size();
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    let threads = i64::from(tch::get_num_threads().max(1));
    let sliced = weight.kind() == Kind::BFloat16 && out >= input && out % threads == 0;
    let y = if sliced {
        let slices = weight.f_view([threads, out / threads, input])?;
        let column = x.f_reshape([1, input, 1])?.f_expand([threads, -1, -1], false)?;
        slices.f_bmm(&column)?
    } else {
        weight.f_mv(&x.f_reshape([input])?)?
    };
    Ok(y.f_reshape(shape.as_slice())?)
}

/// Whether `x` is one token on a CPU that nobody will ask for a gradient.
pub fn is_one_token(x: &Tensor, weight: &Tensor) -> bool {
    let tokens: i64 = x.size().iter().rev().skip(1).product();
    tokens == 1 && weight.device() == tch::Device::Cpu && !x.requires_grad()
}
