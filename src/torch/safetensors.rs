//! Weights in and out as safetensors, with the checks that the format leaves open.
//!
//! The crate refuses oversized headers, overlaps and holes. It accepts NaN, names like
//! `../../etc/x` and shapes such as `[0, 2^64 - 1]`; those are refused here.

use std::fs;
use std::io::{BufRead, Read};
use std::path::Path;

use ring::digest::{Context, SHA256};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, TensorView};

pub use super::weights_error::WeightsError;
use crate::ids::Digest;
use crate::learn::{Tensor, TensorSet};

/// Reads a file of weights; it may have at most `max_bytes`.
///
/// # Errors
/// [`WeightsError`] tells what is wrong with it.
pub fn read_file(path: &Path, max_bytes: u64) -> Result<TensorSet, WeightsError> {
    decode(&read_bytes(path, max_bytes)?)
}

/// The bytes of a file that may have at most `max_bytes`.
pub(super) fn read_bytes(path: &Path, max_bytes: u64) -> Result<Vec<u8>, WeightsError> {
    let io = |source| WeightsError::Io { path: path.display().to_string(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(io)?;
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    let actual = bytes.len() as u64;
    if actual > max_bytes {
        return Err(WeightsError::TooBig { what: "bytes", max: max_bytes, actual });
    }
    Ok(bytes)
}

/// Reads weights from bytes.
///
/// # Errors
/// [`WeightsError`] tells what is wrong with them.
pub fn decode(bytes: &[u8]) -> Result<TensorSet, WeightsError> {
    let malformed = |e: safetensors::SafeTensorError| WeightsError::Malformed(e.to_string());
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
    let count = metadata.offset_keys().len();
    if count > MAX_TENSORS {
        let (max, actual) = (MAX_TENSORS as u64, count as u64);
        return Err(WeightsError::TooBig { what: "tensors", max, actual });
    }
    let file = SafeTensors::deserialize(bytes).map_err(malformed)?;
    let mut tensors = Vec::with_capacity(count);
    for (name, view) in file.iter() {
        tensors.push(tensor(name, &view)?);
    }
    let set = TensorSet::new(tensors)?;
    set.check_finite()?;
    Ok(set)
}

/// Reads those tensors of a file for whose names `keep` holds, in one pass, and the file's SHA-256; the file
/// must have `bytes` bytes.
///
/// # Errors
/// [`WeightsError`] tells what is wrong with it.
pub(super) fn read_part(
    path: &Path,
    bytes: u64,
    keep: &impl Fn(&str) -> bool,
) -> Result<(TensorSet, Digest), WeightsError> {
    let io = |source| WeightsError::Io { path: path.display().to_string(), source };
    let malformed = |e: &dyn std::fmt::Display| WeightsError::Malformed(e.to_string());
    let file = fs::File::open(path).map_err(io)?;
    let actual = file.metadata().map_err(io)?.len();
    if actual > bytes {
        return Err(WeightsError::TooBig { what: "bytes", max: bytes, actual });
    }
    let mut pass = Pass { file: std::io::BufReader::new(file), hash: Context::new(&SHA256) };
    let size = pass.take(8).map_err(io)?;
    let size = u64::from_le_bytes(size.try_into().unwrap_or_default());
    if size > MAX_HEADER_BYTES {
        let (max, actual) = (MAX_HEADER_BYTES, size);
        return Err(WeightsError::TooBig { what: "bytes of a header", max, actual });
    }
    let header = pass.take(usize::try_from(size).unwrap_or(usize::MAX)).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| malformed(&e))?;
    let mut wanted: Vec<(String, TensorInfo)> = Vec::new();
    for name in metadata.offset_keys() {
        if let Some(info) = metadata.info(&name).filter(|_| keep(&name)) {
            wanted.push((name, info.clone()));
        }
    }
    if wanted.len() > MAX_TENSORS {
        let (max, actual) = (MAX_TENSORS as u64, wanted.len() as u64);
        return Err(WeightsError::TooBig { what: "tensors", max, actual });
    }
    let mut at = 0;
    let mut tensors = Vec::with_capacity(wanted.len());
    for (name, info) in wanted {
        let (from, to) = info.data_offsets; // in the order of the file, without overlap
        pass.skip(from.saturating_sub(at)).map_err(io)?;
        // Not more than the file has, whatever the header says.
        let length = to.saturating_sub(from);
        if length as u64 > actual {
            return Err(WeightsError::Malformed(format!("tensor {name:?} is beyond the file")));
        }
        let data = pass.take(length).map_err(io)?;
        let view = TensorView::new(info.dtype, info.shape, &data).map_err(|e| malformed(&e))?;
        tensors.push(tensor(&name, &view)?);
        at = to;
    }
    pass.skip(usize::MAX).map_err(io)?;
    let set = TensorSet::new(tensors)?;
    set.check_finite()?;
    let mut digest = [0; 32];
    digest.copy_from_slice(pass.hash.finish().as_ref());
    Ok((set, Digest(digest)))
}

/// One way through a file, with its hash.
struct Pass {
    file: std::io::BufReader<fs::File>,
    hash: Context,
}

impl Pass {
    fn take(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(count).unwrap_or(u64::MAX);
        self.file.by_ref().take(limit).read_to_end(&mut bytes)?;
        if bytes.len() < count {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.hash.update(&bytes);
        Ok(bytes)
    }

    /// At most so many bytes, fewer at the file's end.
    fn skip(&mut self, mut count: usize) -> std::io::Result<()> {
        while count > 0 {
            let bytes = self.file.fill_buf()?;
            let here = bytes.len().min(count);
            if here == 0 {
                break;
            }
            self.hash.update(bytes.get(..here).unwrap_or_default());
            self.file.consume(here);
            count -= here;
        }
        Ok(())
    }
}

/// The bytes of a safetensors file: f32, tensors in the order of their names.
///
/// # Determinism
/// The same set gives the same bytes.
/// # Errors
/// [`WeightsError::BadName`], [`WeightsError::BadShape`] or a value that isn't finite: what
/// [`decode`] wouldn't take isn't written.
pub fn encode(set: &TensorSet) -> Result<Vec<u8>, WeightsError> {
    set.check_finite()?;
    let mut data = Vec::with_capacity(set.tensors().len());
    for t in set.tensors() {
        check_name(&t.name)?;
        check_shape(&t.name, &t.shape)?;
        let bytes: Vec<u8> = t.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        data.push((t, bytes));
    }
    let malformed = |e: safetensors::SafeTensorError| WeightsError::Malformed(e.to_string());
    let mut views = Vec::with_capacity(data.len());
    for (t, bytes) in &data {
        let view = TensorView::new(Dtype::F32, t.shape.clone(), bytes).map_err(malformed)?;
        views.push((t.name.as_str(), view));
    }
    safetensors::serialize(views, None).map_err(malformed)
}

fn tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, WeightsError> {
    check_name(name)?;
    check_shape(name, view.shape())?;
    if view.dtype() != Dtype::F32 {
        let actual = format!("{:?}", view.dtype());
        return Err(WeightsError::BadDtype { name: name.to_owned(), actual });
    }
    let (words, _) = view.data().as_chunks::<4>();
    let data = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    Ok(Tensor { name: name.to_owned(), shape: view.shape().to_vec(), data })
}

pub(super) fn check_name(name: &str) -> Result<(), WeightsError> {
    let plain = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    if name.len() <= MAX_NAME_BYTES && name.split('.').all(plain) {
        Ok(())
    } else {
        Err(WeightsError::BadName(name.chars().take(MAX_NAME_BYTES).collect()))
    }
}

pub(super) fn check_shape(name: &str, shape: &[usize]) -> Result<(), WeightsError> {
    if shape.len() > MAX_DIMENSIONS {
        let (max, actual) = (MAX_DIMENSIONS as u64, shape.len() as u64);
        return Err(WeightsError::TooBig { what: "dimensions", max, actual });
    }
    if shape.contains(&0) {
        return Err(WeightsError::BadShape { name: name.to_owned(), shape: shape.to_vec() });
    }
    Ok(())
}

const MAX_TENSORS: usize = 4_096;
const MAX_HEADER_BYTES: u64 = 4 << 20;
const MAX_DIMENSIONS: usize = 8;
const MAX_NAME_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, shape: &[usize], data: &[f32]) -> TensorSet {
        let tensor = Tensor { name: name.into(), shape: shape.to_vec(), data: data.to_vec() };
        TensorSet::new(vec![tensor]).unwrap()
    }

    /// A safetensors file with this JSON header and body.
    fn file(header: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(body);
        bytes
    }

    fn refused(header: &str, body: &[u8]) -> &'static str {
        decode(&file(header, body)).unwrap_err().kind()
    }

    #[test]
    fn weights_come_back_bit_for_bit_and_bytes_are_stable() {
        let both = TensorSet::new(vec![
            Tensor {
                name: "b.w".into(),
                shape: vec![2, 2],
                data: vec![1.0, -0.0, 1e-40, f32::MAX],
            },
            Tensor { name: "a".into(), shape: vec![], data: vec![3.5] },
        ])
        .unwrap();
        let bytes = encode(&both).unwrap();
        let back = decode(&bytes).unwrap();
        let bits = |s: &TensorSet| -> Vec<u32> {
            s.tensors().iter().flat_map(|t| t.data.iter().map(|x| x.to_bits())).collect()
        };
        assert_eq!(back.layout(), both.layout());
        assert_eq!(bits(&back), bits(&both));
        assert_eq!(encode(&back).unwrap(), bytes);
    }

    #[test]
    fn what_the_format_accepts_and_a_model_must_not_is_refused() {
        let good = r#"{"a.b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        assert_eq!(decode(&file(good, &[0; 4])).unwrap(), set("a.b", &[1], &[0.0]));
        for name in ["../../etc/x", "a/b", "", ".", "a..b", "/a", "a b", "a\\u0000"] {
            let header = good.replace("a.b", name);
            assert_eq!(refused(&header, &[0; 4]), "bad_name", "{name}");
        }
        assert_eq!(refused(&good.replace("a.b", &"x".repeat(257)), &[0; 4]), "bad_name");
        assert_eq!(refused(&good.replace("F32", "I32"), &[0; 4]), "bad_dtype");
        assert_eq!(refused(good, &f32::NAN.to_le_bytes()), "not_finite");
        assert_eq!(refused(good, &f32::INFINITY.to_le_bytes()), "not_finite");
        let hole = r#"{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#;
        assert_eq!(refused(hole, &[]), "bad_shape");
        let deep = good.replace("[1]", "[1,1,1,1,1,1,1,1,1]");
        assert_eq!(refused(&deep, &[0; 4]), "too_big");
        assert_eq!(refused(good, &[0; 3]), "malformed");
        assert_eq!(refused(good, &[0; 5]), "malformed");
    }

    #[test]
    fn what_would_not_be_read_is_not_written() {
        assert_eq!(encode(&set("../x", &[1], &[0.0])).unwrap_err().kind(), "bad_name");
        assert_eq!(encode(&set("x", &[0], &[])).unwrap_err().kind(), "bad_shape");
        assert_eq!(encode(&set("x", &[1], &[f32::NAN])).unwrap_err().kind(), "not_finite");
    }

    #[test]
    fn a_file_above_the_cap_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let bytes = encode(&set("a", &[2], &[1.0, 2.0])).unwrap();
        fs::write(&path, &bytes).unwrap();
        let size = bytes.len() as u64;
        assert!(read_file(&path, size).is_ok());
        assert_eq!(read_file(&path, size - 1).unwrap_err().kind(), "too_big");
        assert_eq!(read_file(&dir.path().join("absent"), 9).unwrap_err().kind(), "io");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
