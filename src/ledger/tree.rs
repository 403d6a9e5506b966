//! The RFC 6962 Merkle tree: heads, proofs and their verification.
//!
//! A [`Tree`] keeps the roots of its perfect subtrees only, at most 64 hashes, because a plant
//! gateway's ledger grows for years; ct-merkle's own tree holds all leaves and all inner nodes in
//! memory. Proofs are made from the leaf hashes when somebody asks. They are *checked* by
//! ct-merkle, so that what is built here has a judge that shares no code with it.

use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use ring::digest::{Context, SHA256};
use sha2::Sha256;

use super::LedgerError;
use crate::ids::Digest;

/// Size and root of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// Number of leaves.
    pub size: u64,
    /// Root hash.
    pub root: Digest,
}

/// An append-only tree of any length in constant memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// Roots of the perfect subtrees, largest first: one for each bit set in `size`.
    peaks: Vec<Digest>,
}

impl Tree {
    /// Adds a leaf by its hash.
    pub fn append(&mut self, leaf: Digest) {
        let mut top = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                top = node_hash(&left, &top);
            }
        }
        self.peaks.push(top);
        self.size += 1;
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Size and root.
    pub fn head(&self) -> Head {
        let mut peaks = self.peaks.iter().rev();
        let root = match peaks.next() {
            None => sha256(&[]),
            Some(last) => peaks.fold(*last, |right, left| node_hash(left, &right)),
        };
        Head { size: self.size, root }
    }
}

impl FromIterator<Digest> for Tree {
    fn from_iter<I: IntoIterator<Item = Digest>>(leaves: I) -> Self {
        let mut tree = Self::default();
        leaves.into_iter().for_each(|leaf| tree.append(leaf));
        tree
    }
}

/// Hash of a leaf: SHA-256 over 0x00 and its bytes.
pub fn leaf_hash(bytes: &[u8]) -> Digest {
    sha256(&[&[0], bytes])
}

/// Hash of an inner node: SHA-256 over 0x01 and both children.
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    sha256(&[&[1], &left.0, &right.0])
}

/// Shows that leaf `index` is in the tree of all `leaves`. From the leaf upwards.
///
/// # Errors
/// [`LedgerError::OutOfRange`].
/// # Source
/// RFC 6962, 2.1.1.
pub fn inclusion_proof(leaves: &[Digest], index: u64) -> Result<Vec<Digest>, LedgerError> {
    let mut at = position(leaves, index)?;
    if at == leaves.len() {
        return Err(LedgerError::OutOfRange { index, size: index });
    }
    let (mut rest, mut proof) = (leaves, Vec::new());
    while rest.len() > 1 {
        let (left, right) = split(rest);
        if at < left.len() {
            proof.push(root_of(right));
            rest = left;
        } else {
            proof.push(root_of(left));
            at -= left.len();
            rest = right;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Shows that the tree of the first `old_size` leaves is a prefix of the tree of all `leaves`.
///
/// Empty when `old_size` is 0 or all of them.
///
/// # Errors
/// [`LedgerError::OutOfRange`].
/// # Source
/// RFC 6962, 2.1.2.
pub fn consistency_proof(leaves: &[Digest], old_size: u64) -> Result<Vec<Digest>, LedgerError> {
    let mut old = position(leaves, old_size)?;
    let (mut rest, mut proof, mut whole) = (leaves, Vec::new(), true);
    if old == 0 {
        return Ok(proof);
    }
    while old < rest.len() {
        let (left, right) = split(rest);
        if old <= left.len() {
            proof.push(root_of(right));
            rest = left;
        } else {
            proof.push(root_of(left));
            old -= left.len();
            rest = right;
            whole = false;
        }
    }
    // The verifier knows the old root; it needs this subtree only where that isn't it.
    if !whole {
        proof.push(root_of(rest));
    }
    proof.reverse();
    Ok(proof)
}

/// Checks that a leaf of these bytes is at `index` of the tree with this head.
///
/// # Errors
/// [`LedgerError::BadProof`].
pub fn verify_inclusion(
    head: &Head,
    index: u64,
    leaf: &[u8],
    proof: &[Digest],
) -> Result<(), LedgerError> {
    let refused = LedgerError::BadProof { what: "inclusion", size: head.size };
    let (Some(root), Some(proof)) = (root_hash(head), joined(proof)) else {
        return Err(refused);
    };
    let proof = InclusionProof::try_from_bytes(proof).map_err(|_| refused.clone())?;
    root.verify_inclusion(&leaf, index, &proof).map_err(|_| refused)
}

/// Checks that `new` grew out of `old`. Everything grows out of the empty tree.
///
/// # Errors
/// [`LedgerError::Shrunk`] when `new` is smaller, else [`LedgerError::BadProof`].
pub fn verify_consistency(old: &Head, new: &Head, proof: &[Digest]) -> Result<(), LedgerError> {
    if new.size < old.size {
        return Err(LedgerError::Shrunk { signed: old.size, actual: new.size });
    }
    let refused = LedgerError::BadProof { what: "consistency", size: new.size };
    if old.size == 0 {
        let empty = *old == Tree::default().head() && proof.is_empty();
        return if empty { Ok(()) } else { Err(refused) };
    }
    let (Some(old), Some(new), Some(proof)) = (root_hash(old), root_hash(new), joined(proof))
    else {
        return Err(refused);
    };
    let proof = ConsistencyProof::try_from_bytes(proof).map_err(|_| refused.clone())?;
    new.verify_consistency(&old, &proof).map_err(|_| refused)
}

fn sha256(parts: &[&[u8]]) -> Digest {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    Digest(digest)
}

/// Root of a tree of these leaves; recursion is as deep as the tree.
pub(super) fn root_of(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => sha256(&[]),
        [leaf] => *leaf,
        _ => {
            let (left, right) = split(leaves);
            node_hash(&root_of(left), &root_of(right))
        }
    }
}

/// Splits two or more leaves at the largest power of two below their number.
fn split(leaves: &[Digest]) -> (&[Digest], &[Digest]) {
    leaves.split_at(leaves.len().next_power_of_two() / 2)
}

fn position(leaves: &[Digest], index: u64) -> Result<usize, LedgerError> {
    usize::try_from(index).ok().filter(|at| *at <= leaves.len()).ok_or_else(|| {
        LedgerError::OutOfRange { index, size: u64::try_from(leaves.len()).unwrap_or(u64::MAX) }
    })
}

/// The head as ct-merkle knows it; `None` beyond the sizes that its arithmetic takes.
fn root_hash(head: &Head) -> Option<RootHash<Sha256>> {
    (head.size <= MAX_SIZE).then(|| RootHash::new(head.root.0.into(), head.size))
}

/// The proof as one string of bytes; `None` when it is longer than any true one.
fn joined(proof: &[Digest]) -> Option<Vec<u8>> {
    (proof.len() <= MAX_PROOF).then(|| proof.iter().flat_map(|hash| hash.0).collect())
}

const MAX_SIZE: u64 = 1 << 62;
/// One for each level, and one more in a consistency proof.
pub(super) const MAX_PROOF: usize = 64;

#[cfg(test)]
mod tests {
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use proptest::prelude::*;

    use super::*;

    /// Leaves of the test vectors of the Certificate Transparency reference code.
    const LEAVES: [&str; 8] = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn vector_leaves() -> Vec<Vec<u8>> {
        LEAVES.iter().map(|leaf| hex::decode(leaf).unwrap()).collect()
    }

    fn hashes(leaves: &[Vec<u8>]) -> Vec<Digest> {
        leaves.iter().map(|leaf| leaf_hash(leaf)).collect()
    }

    fn flat(proof: &[Digest]) -> Vec<u8> {
        proof.iter().flat_map(|hash| hash.0).collect()
    }

    fn head_of(leaves: &[Digest]) -> Head {
        leaves.iter().copied().collect::<Tree>().head()
    }

    #[test]
    fn roots_are_those_of_the_certificate_transparency_vectors() {
        let mut tree = Tree::default();
        assert_eq!(tree.head().root.to_string(), ROOTS[0]);
        for (leaf, root) in vector_leaves().iter().zip(&ROOTS[1..]) {
            tree.append(leaf_hash(leaf));
            assert_eq!(tree.head().root.to_string(), *root);
        }
        assert_eq!(tree.size(), 8);
    }

    #[test]
    fn proofs_are_those_of_the_certificate_transparency_vectors() {
        let leaves = hashes(&vector_leaves());
        let text =
            |proof: Vec<Digest>| -> Vec<String> { proof.iter().map(ToString::to_string).collect() };
        assert_eq!(
            text(inclusion_proof(&leaves, 0).unwrap()),
            [
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ]
        );
        assert_eq!(
            text(consistency_proof(&leaves, 6).unwrap()),
            [
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
    }

    #[test]
    fn a_leaf_can_not_pass_for_an_inner_node() {
        let leaves = hashes(&vector_leaves());
        let forged = [leaves[0].0, leaves[1].0].concat();
        let head = head_of(&leaves[..2]);
        let as_one = Head { size: 1, ..head };
        assert!(verify_inclusion(&as_one, 0, &forged, &[]).is_err());
    }

    #[test]
    fn what_is_not_in_the_tree_has_no_proof() {
        let leaves = hashes(&vector_leaves());
        assert_eq!(inclusion_proof(&leaves, 8).unwrap_err().kind(), "ledger_out_of_range");
        assert_eq!(inclusion_proof(&[], 0).unwrap_err().kind(), "ledger_out_of_range");
        assert_eq!(consistency_proof(&leaves, 9).unwrap_err().kind(), "ledger_out_of_range");
        let (old, new) = (head_of(&leaves), head_of(&leaves[..5]));
        assert_eq!(verify_consistency(&old, &new, &[]).unwrap_err().kind(), "ledger_shrunk");
    }

    proptest! {
        #[test]
        fn ct_merkle_builds_the_same_tree_and_the_same_proofs(
            leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 1..70),
            index: prop::sample::Index,
        ) {
            let mut theirs = MemoryBackedTree::<Sha256, Vec<u8>>::new();
            for leaf in &leaves {
                theirs.push(leaf.clone());
            }
            let hashes = hashes(&leaves);
            let head = head_of(&hashes);
            let their_root = theirs.root();
            prop_assert_eq!(&head.root.0[..], &their_root.as_bytes()[..]);

            let at = index.index(leaves.len());
            let proof = inclusion_proof(&hashes, at as u64).unwrap();
            let expected = theirs.prove_inclusion(at);
            prop_assert_eq!(flat(&proof), expected.as_bytes());
            verify_inclusion(&head, at as u64, &leaves[at], &proof).unwrap();

            let old = at + 1;
            let proof = consistency_proof(&hashes, old as u64).unwrap();
            let expected = theirs.prove_consistency(leaves.len() - old);
            prop_assert_eq!(flat(&proof), expected.as_bytes());
            verify_consistency(&head_of(&hashes[..old]), &head, &proof).unwrap();
            verify_consistency(&head_of(&[]), &head, &[]).unwrap();
        }

        #[test]
        fn a_flipped_bit_in_a_proof_or_head_is_caught(
            count in 2..40_u64,
            index: prop::sample::Index,
            bit in 0..256_usize,
        ) {
            let leaves: Vec<Vec<u8>> = (0..count).map(|n| n.to_be_bytes().to_vec()).collect();
            let hashes = hashes(&leaves);
            let head = head_of(&hashes);
            let at = index.index(leaves.len());
            let flip = |hash: &mut Digest| hash.0[bit / 8] ^= 1 << (bit % 8);

            let proof = inclusion_proof(&hashes, at as u64).unwrap();
            for place in 0..proof.len() {
                let mut bad = proof.clone();
                flip(&mut bad[place]);
                prop_assert!(verify_inclusion(&head, at as u64, &leaves[at], &bad).is_err());
            }
            let mut bad = head;
            flip(&mut bad.root);
            prop_assert!(verify_inclusion(&bad, at as u64, &leaves[at], &proof).is_err());
            prop_assert!(verify_inclusion(&head, at as u64, b"other", &proof).is_err());
            let short = &proof[..proof.len() - 1];
            prop_assert!(verify_inclusion(&head, at as u64, &leaves[at], short).is_err());

            let old = head_of(&hashes[..=at]);
            let proof = consistency_proof(&hashes, old.size).unwrap();
            for place in 0..proof.len() {
                let mut bad = proof.clone();
                flip(&mut bad[place]);
                prop_assert!(verify_consistency(&old, &head, &bad).is_err());
            }
            let mut bad = old;
            flip(&mut bad.root);
            prop_assert!(verify_consistency(&bad, &head, &proof).is_err());
        }

        #[test]
        fn any_proof_is_checked_without_a_panic(
            sizes in (any::<u64>(), any::<u64>()),
            index: u64,
            hashes in prop::collection::vec(any::<[u8; 32]>(), 0..70),
        ) {
            let proof: Vec<Digest> = hashes.into_iter().map(Digest).collect();
            let head = |size| Head { size, root: Digest([7; 32]) };
            let _ = verify_inclusion(&head(sizes.0), index, b"x", &proof);
            let _ = verify_consistency(&head(sizes.0), &head(sizes.1), &proof);
        }
    }
}
