//! Text to token ids and back, by the `tokenizers` crate.
//!
//! A tokenizer comes with its model: from the vocabulary inside a GGUF file, or from the
//! `tokenizer.json` beside the weights. What is built here is checked first, since the crate trusts
//! its vocabulary (it would panic on merges that aren't in it).

use std::sync::Arc;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use super::weights_error::WeightsError;
use crate::ids::Digest;
use crate::learn::{LearnError, Tokens};

/// A model's tokenizer; a clone shares it.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Arc<Tokenizer>,
    vocab: u32,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// The vocabulary of a byte-level BPE, as a GGUF file has it.
#[derive(Debug, Clone, Default)]
pub struct BytePairs {
    /// Tokens in the order of their ids, bytes written as GPT-2's letters.
    pub tokens: Vec<String>,
    /// Pairs that are joined, first come first served, each `left right`.
    pub merges: Vec<String>,
    /// Ids of tokens that steer the model: found in text as a whole, left out of decoded text.
    pub control: Vec<u32>,
    /// Ids of tokens that are found in text as a whole and are text themselves.
    pub whole: Vec<u32>,
    /// Whether each digit is a token of its own.
    pub split_digits: bool,
    /// Begin of a text.
    pub bos: Option<u32>,
    /// End of an answer.
    pub eos: Option<u32>,
}

impl TextTokenizer {
    /// Builds a byte-level BPE: digits one by one if asked for, then GPT-2's pattern.
    ///
    /// # Errors
    /// [`WeightsError::BadTokenizer`] when a token comes twice, a merge isn't made of tokens, or an
    /// id is past the end; [`WeightsError::TooBig`].
    pub fn from_byte_pairs(pairs: BytePairs) -> Result<Self, WeightsError> {
        let count = pairs.tokens.len();
        cap("tokens", MAX_VOCAB, count)?;
        cap("merges", MAX_VOCAB, pairs.merges.len())?;
        let vocab = u32::try_from(count).unwrap_or(u32::MAX);
        let special = added(&pairs, &pairs.control, true)?;
        let plain = added(&pairs, &pairs.whole, false)?;
        for id in [pairs.bos, pairs.eos].into_iter().flatten() {
            if id >= vocab {
                return Err(bad(format!("token id {id} of {vocab}")));
            }
        }
        let ids: Vocab = pairs.tokens.into_iter().zip(0..).collect();
        if ids.len() != count || ids.contains_key("") {
            return Err(bad("a token is empty or comes twice".to_owned()));
        }
        let mut merges = Vec::with_capacity(pairs.merges.len());
        for merge in &pairs.merges {
            let halves = merge.split_once(' ').filter(|(left, right)| {
                [*left, *right, &format!("{left}{right}")].iter().all(|t| ids.contains_key(*t))
            });
            let Some((left, right)) = halves else {
                return Err(bad(format!(
                    "merge {merge:?} isn't made of two tokens that make a third"
                )));
            };
            merges.push((left.to_owned(), right.to_owned()));
        }
        let model = BPE::builder().vocab_and_merges(ids, merges).build().map_err(crates_words)?;
        let mut tokenizer = Tokenizer::new(model);
        let bytes = ByteLevel::new(false, true, true);
        let mut steps = Vec::new();
        if pairs.split_digits {
            steps.push(Digits::new(true).into());
        }
        steps.push(bytes.into());
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        tokenizer.with_decoder(Some(bytes));
        tokenizer.add_special_tokens(special).map_err(crates_words)?;
        tokenizer.add_tokens(plain).map_err(crates_words)?;
        Ok(Self { inner: Arc::new(tokenizer), vocab, bos: pairs.bos, eos: pairs.eos })
    }

    /// Reads a `tokenizer.json`; padding and truncation in it are not used.
    ///
    /// # Errors
    /// [`WeightsError::BadTokenizer`] in the crate's words; [`WeightsError::TooBig`].
    pub fn from_json(
        json: &[u8],
        bos: Option<u32>,
        eos: Option<u32>,
    ) -> Result<Self, WeightsError> {
        cap("bytes of a tokenizer.json", MAX_JSON_BYTES, json.len())?;
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(crates_words)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(crates_words)?;
        let highest = tokenizer.get_vocab(true).into_values().max();
        let Some(highest) = highest else { return Err(bad("no tokens".to_owned())) };
        let vocab = highest.saturating_add(1);
        cap("token ids", MAX_VOCAB, vocab as usize)?;
        Ok(Self { inner: Arc::new(tokenizer), vocab, bos, eos })
    }

    /// Ids of a text, with what the tokenizer itself puts around it (BERT's `[CLS]` and `[SEP]`;
    /// nothing for a tokenizer from GGUF).
    ///
    /// Control tokens that are spelled out in the text become those tokens.
    ///
    /// # Errors
    /// [`LearnError::Engine`] in the crate's words.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LearnError> {
        let encoding = self.inner.encode_fast(text, true).map_err(|e| engine(&*e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of these ids; control tokens are left out, bytes that aren't UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] for an id that isn't one of [`TextTokenizer::vocab`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, LearnError> {
        if let Some(id) = ids.iter().find(|id| **id >= self.vocab) {
            let (expected, actual) = (format!("below {}", self.vocab), id.to_string());
            return Err(LearnError::OutOfRange { what: "token id", expected, actual });
        }
        self.inner.decode(ids, true).map_err(|e| engine(&*e))
    }

    /// How many ids there are: all are below this.
    pub fn vocab(&self) -> u32 {
        self.vocab
    }

    /// SHA-256 over the names of all ids, in their order: what ids mean to this tokenizer.
    pub fn digest(&self) -> Digest {
        let mut bytes = b"gaisnet tokenizer 1\n".to_vec();
        for id in 0..self.vocab {
            let name = self.inner.id_to_token(id).unwrap_or_default();
            bytes.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(name.bytes());
        }
        Digest::of(&bytes)
    }

    /// The token that ends an answer.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id of a token as the vocabulary writes it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

impl Tokens for TextTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, LearnError> {
        self.encode(text)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, LearnError> {
        self.decode(ids)
    }

    fn is_end(&self, id: u32) -> bool {
        self.eos == Some(id)
    }
}

fn added(pairs: &BytePairs, ids: &[u32], special: bool) -> Result<Vec<AddedToken>, WeightsError> {
    let token = |id: &u32| {
        let text = pairs.tokens.get(*id as usize);
        let text = text.ok_or_else(|| bad(format!("token id {id} of {}", pairs.tokens.len())))?;
        Ok(AddedToken::from(text.as_str(), special).normalized(false))
    };
    ids.iter().map(token).collect()
}

fn cap(what: &'static str, max: usize, actual: usize) -> Result<(), WeightsError> {
    if actual <= max {
        return Ok(());
    }
    Err(WeightsError::TooBig { what, max: max as u64, actual: actual as u64 })
}

fn bad(what: String) -> WeightsError {
    WeightsError::BadTokenizer(what)
}

fn crates_words(error: impl std::fmt::Display) -> WeightsError {
    bad(error.to_string())
}

fn engine(error: &dyn std::error::Error) -> LearnError {
    LearnError::Engine { engine: "tokenizers", message: error.to_string() }
}

/// The largest vocabularies in use have about 260,000 tokens.
const MAX_VOCAB: usize = 1 << 20;
const MAX_JSON_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> BytePairs {
        let tokens = ["<end>", "a", "b", "1", "2", "Ġ", "ab", "Ġab", "12"];
        let merges = ["a b", "Ġ ab", "1 2"];
        BytePairs {
            tokens: tokens.map(str::to_owned).to_vec(),
            merges: merges.map(str::to_owned).to_vec(),
            control: vec![0],
            split_digits: true,
            eos: Some(0),
            ..BytePairs::default()
        }
    }

    fn refused(change: impl FnOnce(&mut BytePairs)) -> &'static str {
        let mut pairs = pairs();
        change(&mut pairs);
        TextTokenizer::from_byte_pairs(pairs).unwrap_err().kind()
    }

    #[test]
    fn merges_digits_and_control_tokens_come_out_as_ids() {
        let tokenizer = TextTokenizer::from_byte_pairs(pairs()).unwrap();
        assert_eq!(tokenizer.encode("ab ab12<end>").unwrap(), [6, 7, 3, 4, 0]);
        assert_eq!(tokenizer.decode(&[6, 7, 3, 4, 0]).unwrap(), "ab ab12");
        assert_eq!((tokenizer.vocab(), tokenizer.eos(), tokenizer.bos()), (9, Some(0), None));
        let joined = BytePairs { split_digits: false, ..pairs() };
        let tokenizer = TextTokenizer::from_byte_pairs(joined).unwrap();
        assert_eq!(tokenizer.encode("12").unwrap(), [8], "the twin without the split");
    }

    #[test]
    fn a_vocabulary_that_contradicts_itself_is_refused() {
        assert_eq!(refused(|p| p.merges.push("a 2".into())), "bad_tokenizer");
        assert_eq!(refused(|p| p.merges.push("ab".into())), "bad_tokenizer");
        assert_eq!(refused(|p| p.tokens.push("a".into())), "bad_tokenizer");
        assert_eq!(refused(|p| p.tokens.push(String::new())), "bad_tokenizer");
        assert_eq!(refused(|p| p.control.push(9)), "bad_tokenizer");
        assert_eq!(refused(|p| p.eos = Some(9)), "bad_tokenizer");
        assert!(TextTokenizer::from_byte_pairs(pairs()).is_ok(), "the valid twin");
    }

    #[test]
    fn an_id_past_the_vocabulary_is_not_decoded() {
        let tokenizer = TextTokenizer::from_byte_pairs(pairs()).unwrap();
        assert_eq!(tokenizer.decode(&[9]).unwrap_err().kind(), "out_of_range");
    }

    #[test]
    fn a_tokenizer_json_is_read_without_its_padding_and_truncation() {
        let json = br#"{"version":"1.0","truncation":{"max_length":2,"strategy":"LongestFirst","stride":0},
            "padding":{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,
            "pad_type_id":0,"pad_token":"x"},"added_tokens":[],"normalizer":null,
            "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
            "model":{"type":"WordLevel","vocab":{"x":0,"y":7},"unk_token":"x"}}"#;
        let tokenizer = TextTokenizer::from_json(json, None, None).unwrap();
        assert_eq!(tokenizer.encode("y y z y").unwrap(), [7, 7, 0, 7]);
        assert_eq!(tokenizer.vocab(), 8);
        let error = TextTokenizer::from_json(b"{}", None, None).unwrap_err();
        assert_eq!(error.kind(), "bad_tokenizer");
    }
}
