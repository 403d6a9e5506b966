//! What a text goes on with, guessed from itself: where its last words stood before, what followed them.
//!
//! A guess costs nothing when it is wrong and a whole pass through the model when it is right, since the
//! model checks several tokens in one pass. Texts of machines repeat themselves: names of parts, quotes of
//! the prompt, lists.
//!
//! # Source
//! Prompt lookup (Saxena 2023), a draft without a model for speculative decoding (arXiv:2211.17192).

/// Up to `most` tokens that followed the last place where the latest tokens stood before; none where
/// they are new.
pub fn guess(text: &[u32], most: usize) -> &[u32] {
    let Some(start) = text.len().checked_sub(ALIKE) else { return &[] };
    let latest = text.get(start..).unwrap_or_default();
    let earlier = text.get(..text.len() - 1).unwrap_or_default();
    let Some(found) = earlier.windows(ALIKE).rposition(|tokens| tokens == latest) else {
        return &[];
    };
    let follows = text.get(found + ALIKE..).unwrap_or_default();
    follows.get(..most.min(follows.len())).unwrap_or_default()
}

/// Tokens that have to be alike.
const ALIKE: usize = 3;

#[cfg(test)]
mod tests {
    use super::guess;

    #[test]
    fn what_followed_last_time_is_guessed() {
        assert_eq!(guess(&[1, 2, 3, 9, 8, 1, 2, 3], 4), [9, 8, 1, 2]);
        assert_eq!(guess(&[1, 2, 3, 9, 8, 1, 2, 3], 1), [9]);
        // The last place counts, also one that overlaps.
        assert_eq!(guess(&[1, 2, 3, 7, 1, 2, 3, 9, 1, 2, 3], 1), [9]);
        assert_eq!(guess(&[5, 5, 5, 5], 4), [5]);
        for new in [&[][..], &[1, 2], &[1, 2, 3], &[1, 2, 3, 4, 2, 3]] {
            assert!(guess(new, 4).is_empty(), "{new:?}");
        }
        assert!(guess(&[1, 2, 3, 9, 1, 2, 3], 0).is_empty());
    }
}
