//! The format IDX of the MNIST family: a head that names type and sizes, then the bytes.
//!
//! Sizes are compared with what is there before anything is taken; nothing is allocated by them.

use crate::learn::Images;

/// An array of bytes in up to three dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idx<'a> {
    /// Sizes, the outermost first.
    pub shape: Vec<usize>,
    /// Row-major, as many as the sizes say.
    pub data: &'a [u8],
}

/// Reads a file of unsigned bytes.
///
/// # Errors
/// What is wrong with it.
/// # Examples
/// ```
/// let bytes = [0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9];
/// let idx = gaisnet::data::idx::parse(&bytes)?;
/// assert_eq!((idx.shape, idx.data), (vec![1, 3], &[7, 8, 9][..]));
/// # Ok::<(), String>(())
/// ```
pub fn parse(bytes: &[u8]) -> Result<Idx<'_>, String> {
    let Some(([0, 0, kind, rank], mut rest)) = bytes.split_first_chunk() else {
        return Err("no IDX file: it begins with two zero bytes, a type and a rank".to_owned());
    };
    if *kind != UNSIGNED_BYTE {
        return Err(format!("type 0x{kind:02x}, expected 0x08 (unsigned bytes)"));
    }
    if !(1..=MAX_RANK).contains(rank) {
        return Err(format!("{rank} dimensions, expected 1 to {MAX_RANK}"));
    }
    let mut shape = Vec::new();
    let mut count = 1_usize;
    for _ in 0..*rank {
        let Some((size, after)) = rest.split_first_chunk() else {
            return Err("it ends in its head".to_owned());
        };
        let size = usize::try_from(u32::from_be_bytes(*size)).unwrap_or(usize::MAX);
        count = count.checked_mul(size).ok_or("its sizes are beyond any file")?;
        shape.push(size);
        rest = after;
    }
    if rest.len() != count {
        return Err(format!("its sizes {shape:?} need {count} bytes, {} are there", rest.len()));
    }
    Ok(Idx { shape, data: rest })
}

/// Puts a file of images and the file of their labels together.
///
/// # Errors
/// What doesn't fit.
pub fn images(pixels: &[u8], labels: &[u8], classes: usize) -> Result<Images, String> {
    let (pixels, labels) = (parse(pixels)?, parse(labels)?);
    let &[n, height, width] = pixels.shape.as_slice() else {
        return Err(format!("images have three dimensions, got {:?}", pixels.shape));
    };
    if labels.shape != [n] {
        return Err(format!("{n} images, but labels of sizes {:?}", labels.shape));
    }
    if !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) {
        return Err(format!("images of {height} x {width}, expected sides of 1 to {MAX_SIDE}"));
    }
    if let Some(label) = labels.data.iter().find(|label| usize::from(**label) >= classes) {
        return Err(format!("label {label}, expected one below {classes}"));
    }
    let (pixels, labels) = (pixels.data.to_vec(), labels.data.to_vec());
    Ok(Images { pixels, width, height, labels, classes })
}

const UNSIGNED_BYTE: u8 = 0x08;
const MAX_RANK: u8 = 3;
const MAX_SIDE: usize = 4_096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(shape: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, u8::try_from(shape.len()).unwrap()];
        bytes.extend(shape.iter().flat_map(|size| size.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    #[test]
    fn images_and_labels_are_read() {
        let set = images(&file(&[2, 2, 1], &[1, 2, 3, 4]), &file(&[2], &[9, 0]), 10).unwrap();
        assert_eq!((set.height, set.width, set.classes), (2, 1, 10));
        assert_eq!((set.pixels, set.labels), (vec![1, 2, 3, 4], vec![9, 0]));
        assert!(images(&file(&[0, 2, 2], &[]), &file(&[0], &[]), 10).unwrap().labels.is_empty());
    }

    #[test]
    fn a_wrong_head_is_refused() {
        let good = file(&[2], &[1, 2]);
        assert!(parse(&good).is_ok());
        for (at, value) in [(0, 1), (1, 1), (2, 0x0d), (2, 9), (3, 0), (3, 4), (3, 255)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(parse(&bad).is_err(), "byte {at} as {value}");
        }
    }

    #[test]
    fn counts_that_lie_are_refused_before_anything_is_taken() {
        assert!(parse(&file(&[3], &[1, 2])).unwrap_err().contains("need 3 bytes, 2 are there"));
        assert!(parse(&file(&[u32::MAX], &[])).is_err());
        let all = file(&[u32::MAX, u32::MAX, u32::MAX], &[]);
        assert!(parse(&all).unwrap_err().contains("beyond any file"));
        // 65536^3 = 2^48 overflows no 64 bits, and still nothing of it is there.
        assert!(parse(&file(&[65_536, 65_536, 65_536], &[1])).is_err());
    }

    #[test]
    fn cut_and_trailing_bytes_are_refused() {
        let good = file(&[2, 2], &[1, 2, 3, 4]);
        for cut in 0..good.len() {
            assert!(parse(&good[..cut]).is_err(), "{cut} bytes");
        }
        assert!(parse(&[good, vec![0]].concat()).is_err());
    }

    #[test]
    fn images_and_labels_that_do_not_fit_are_refused() {
        let (pixels, labels) = (file(&[2, 1, 1], &[1, 2]), file(&[2], &[0, 1]));
        let why =
            |pixels: &[u8], labels: &[u8], classes| images(pixels, labels, classes).unwrap_err();
        assert!(images(&pixels, &labels, 2).is_ok());
        assert!(why(&pixels, &labels, 1).contains("label 1"));
        assert!(why(&pixels, &file(&[1], &[0]), 2).contains("2 images"));
        assert!(why(&labels, &labels, 2).contains("three dimensions"));
        assert!(why(&pixels, &pixels, 3).contains("labels of sizes"));
        assert!(why(&file(&[1, 0, 9], &[]), &file(&[1], &[0]), 2).contains("sides"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(idx) = parse(&bytes) {
                prop_assert_eq!(idx.shape.iter().product::<usize>(), idx.data.len());
            }
            let _ = images(&bytes, &bytes, 10);
        }
    }
}
