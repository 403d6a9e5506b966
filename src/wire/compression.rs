//! zstd behind a cap, for updates and frames.
//!
//! A thread keeps its contexts from one message to the next: for a small message to make one takes longer than to use
//! it. What comes out depends on nothing but what goes in. Contexts that a large message has blown up aren't kept.

use std::cell::Cell;
use std::io::Read;

use zstd::bulk::Compressor;
use zstd::zstd_safe::DCtx;

use super::codec::CodecError;

/// Most bytes that a context may hold between two messages.
const MOST_KEPT_BYTES: usize = 2 << 20;

thread_local! {
    static COMPRESSOR: Cell<Option<Compressor<'static>>> = const { Cell::new(None) };
    static DECOMPRESSOR: Cell<Option<DCtx<'static>>> = const { Cell::new(None) };
}

/// Compresses to one frame.
pub(super) fn compress(bytes: &[u8], level: i32) -> Result<Vec<u8>, CodecError> {
    let bad = |error: std::io::Error| CodecError::Compression(error.to_string());
    let mut compressor = match COMPRESSOR.take() {
        Some(mut kept) => {
            kept.set_compression_level(level).map_err(bad)?;
            kept
        }
        None => Compressor::new(level).map_err(bad)?,
    };
    let packed = compressor.compress(bytes).map_err(bad)?;
    if compressor.context_mut().sizeof() <= MOST_KEPT_BYTES {
        COMPRESSOR.set(Some(compressor));
    }
    Ok(packed)
}

/// Decompresses to at most `cap` bytes; the window that a zstd frame asks for is at most a power of two.
pub(super) fn decompress(
    bytes: &[u8],
    cap: usize,
    max_window_log: u32,
) -> Result<Vec<u8>, CodecError> {
    let bad = |error: std::io::Error| CodecError::Compression(error.to_string());
    let limit = u64::try_from(cap).unwrap_or(u64::MAX).saturating_add(1);
    let mut plain = Vec::with_capacity(bytes.len().saturating_mul(2).min(cap));
    let mut context = DECOMPRESSOR.take().unwrap_or_default();
    let mut decoder = zstd::stream::read::Decoder::with_context(bytes, &mut context);
    // What a frame's header claims is allocated: no more than a whole message.
    decoder.window_log_max(max_window_log).map_err(bad)?;
    decoder.take(limit).read_to_end(&mut plain).map_err(bad)?;
    if context.sizeof() <= MOST_KEPT_BYTES {
        DECOMPRESSOR.set(Some(context));
    }
    if plain.len() > cap {
        return Err(CodecError::Bomb { cap });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_did_before_changes_nothing() {
        let noise: Vec<u8> =
            (0..600_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let zeros = vec![0; 9_000_000];
        let fresh = |bytes: &[u8], level| zstd::bulk::compress(bytes, level).unwrap();
        for _ in 0..3 {
            for (bytes, level) in [(&noise, 3), (&zeros, 1), (&noise, 1), (&zeros, 3)] {
                let packed = compress(bytes, level).unwrap();
                assert_eq!(packed, fresh(bytes, level));
                // A bomb, a broken frame and a cut one stand between.
                assert!(matches!(
                    decompress(&packed, bytes.len() - 1, 26),
                    Err(CodecError::Bomb { .. })
                ));
                assert!(decompress(b"no frame", 100, 26).is_err());
                assert!(decompress(&packed[..packed.len() - 1], bytes.len(), 26).is_err());
                assert_eq!(&decompress(&packed, bytes.len(), 26).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn a_window_beyond_the_bound_is_refused_also_by_a_context_that_took_a_larger_one() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(20).unwrap();
        std::io::Write::write_all(&mut encoder, &vec![7; 3 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(decompress(&packed, 4 << 20, 20).is_ok());
        assert!(decompress(&packed, 4 << 20, 19).is_err());
        assert!(decompress(&packed, 4 << 20, 20).is_ok());
    }
}
