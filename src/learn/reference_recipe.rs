//! What a language model is asked for when it writes reference texts, and which of its answers are taken.
//!
//! ```text
//!   recipe --(seed)--> prompt: an intro, examples of some classes, the class that is asked for
//!             model --> a line --> taken if it is a text of that class; else asked again, with other examples
//! ```
//! So small a model writes much that is beside the point. A line is taken when it has one of its class's words, is
//! neither an example nor there already, and doesn't stammer. That is a rule about words: what comes out
//! is as good as the recipe.
//!
//! Called by `gaisnet reference write`, once for a federation; nodes read the file.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;

use serde::Deserialize;

use super::{Generator, LearnError, ReferenceTexts, Sampler, Sampling, Tokens};
use crate::ids::Name;
use crate::rng::Stream;

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceRecipe {
    /// Name and version of the set.
    pub name: Name,
    /// What all prompts begin with.
    pub intro: String,
    /// Most tokens of a text.
    pub max_tokens: u32,
    /// The classes in the federation's order.
    pub classes: Vec<RecipeClass>,
}

/// A class and how its texts look.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeClass {
    /// Its name.
    pub name: String,
    /// What a text of it may be about; one is named in front of each text of a prompt.
    pub about: Vec<String>,
    /// One of these, in lower case, is in each text of it.
    pub words: Vec<String>,
    /// Examples, of nobody's plant.
    pub examples: Vec<String>,
}

/// How a set is drawn.
#[derive(Debug, Clone, Copy)]
pub struct WriteConfig {
    /// Seed of prompts and tokens.
    pub seed: u64,
    /// Texts in all; each class in turn.
    pub count: u32,
    /// How tokens are picked.
    pub sampling: Sampling,
}

impl ReferenceRecipe {
    /// Checks that there is something to ask for in each class.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`].
    pub fn check(&self) -> Result<(), LearnError> {
        let bad = |expected: &str, actual: String| {
            let expected = expected.to_owned();
            Err(LearnError::OutOfRange { what: "recipe of reference texts", expected, actual })
        };
        if self.classes.len() < 2 || !(1..=MAX_TOKENS).contains(&self.max_tokens) {
            let actual = format!("{}, {}", self.classes.len(), self.max_tokens);
            return bad("2 or more classes, max_tokens 1 to 200", actual);
        }
        let names: BTreeSet<&str> = self.classes.iter().map(|class| class.name.trim()).collect();
        if names.contains("") || names.len() < self.classes.len() {
            let names: Vec<&str> = self.classes.iter().map(|class| class.name.as_str()).collect();
            return bad("a name of its own for each class", format!("{names:?}"));
        }
        // Lines are compared in lower case: such a word would never be found.
        let large = |word: &&String| **word != word.to_lowercase();
        if let Some(word) = self.classes.iter().flat_map(|class| &class.words).find(large) {
            return bad("words in lower case", format!("{word:?}"));
        }
        let lacks = |class: &&RecipeClass| {
            let lists = [&class.about, &class.words, &class.examples];
            let blank = |text: &String| text.trim().is_empty();
            lists.iter().any(|list| list.is_empty() || list.iter().any(blank))
        };
        match self.classes.iter().find(lacks) {
            Some(class) => {
                bad("about, words and examples in each class", format!("none in {}", class.name))
            }
            None => Ok(()),
        }
    }

    /// Has a model write a set; `written_by` says which, `told` hears of each text that is taken. Where the model has no more to say
    /// of a class, there are fewer than asked for, as many of each.
    ///
    /// # Determinism
    /// The same recipe, config and logits give the same texts. Logits of one model differ in their last bits from
    /// machine to machine: that is why the set is kept in a file.
    /// # Errors
    /// [`LearnError::OutOfRange`] when the model writes nothing of a class that can be taken; those of the model.
    pub fn write(
        &self,
        config: &WriteConfig,
        generator: &mut dyn Generator,
        tokens: &dyn Tokens,
        written_by: &str,
        told: &mut dyn FnMut(&str),
    ) -> Result<ReferenceTexts, LearnError> {
        self.check()?;
        let mut seen: BTreeSet<String> = self
            .classes
            .iter()
            .flat_map(|class| &class.examples)
            .map(|t| t.to_lowercase())
            .collect();
        let mut texts: Vec<Option<String>> = vec![None; config.count as usize];
        for attempt in 0..ATTEMPTS {
            let missing = texts.iter().enumerate().filter(|(_, text)| text.is_none());
            let missing: Vec<usize> = missing.map(|(at, _)| at).collect();
            for batch in missing.chunks(BATCH) {
                let mut asked = Vec::with_capacity(batch.len());
                for at in batch {
                    asked.push(self.ask(*at, attempt, config, tokens)?);
                }
                let lines = answers(&mut asked, self.max_tokens, generator, tokens)?;
                for (at, line) in batch.iter().zip(lines) {
                    let class = self.classes.get(at % self.classes.len().max(1));
                    let line = line.lines().next().unwrap_or_default().trim();
                    if class.is_some_and(|class| class.takes(line))
                        && seen.insert(line.to_lowercase())
                        && let Some(text) = texts.get_mut(*at)
                    {
                        told(line);
                        *text = Some(line.to_owned());
                    }
                }
            }
        }
        let texts = self.in_turn(texts)?;
        Ok(ReferenceTexts {
            name: self.name.clone(),
            seed: config.seed,
            written_by: written_by.to_owned(),
            labelled: true,
            classes: self.classes.iter().map(|class| class.name.clone()).collect(),
            texts,
        })
    }

    /// All texts, or where some are missing, as many whole turns of the classes as there are.
    fn in_turn(&self, texts: Vec<Option<String>>) -> Result<Vec<String>, LearnError> {
        if texts.iter().all(Option::is_some) {
            return Ok(texts.into_iter().flatten().collect());
        }
        let mut of_class = vec![VecDeque::new(); self.classes.len()];
        for (at, text) in texts.into_iter().enumerate() {
            if let Some(own) = of_class.get_mut(at % self.classes.len().max(1)) {
                own.extend(text);
            }
        }
        let fewest = self.classes.iter().zip(&of_class).min_by_key(|(_, own)| own.len());
        let turns = match fewest {
            Some((class, own)) if own.is_empty() => {
                return Err(LearnError::OutOfRange {
                    what: "texts that the model writes",
                    expected: format!("one of {} in {ATTEMPTS} attempts", class.name),
                    actual: "none: give the class more words and examples".into(),
                });
            }
            fewest => fewest.map_or(0, |(_, own)| own.len()),
        };
        let mut whole = Vec::new();
        for _ in 0..turns {
            whole.extend(of_class.iter_mut().filter_map(VecDeque::pop_front));
        }
        Ok(whole)
    }

    /// A prompt for text `at`, and what picks its tokens.
    fn ask(
        &self,
        at: usize,
        attempt: u32,
        config: &WriteConfig,
        tokens: &dyn Tokens,
    ) -> Result<Asked, LearnError> {
        let mut stream = Stream::new(config.seed, &format!("text {at} {attempt}"));
        let prompt = self.prompt(at, &mut stream);
        let sampler = Sampler::new(config.sampling, stream.next_u64());
        Ok(Asked { prompt: tokens.encode(&prompt)?, sampler, written: Vec::new(), done: false })
    }

    fn prompt(&self, at: usize, stream: &mut Stream) -> String {
        let classes = self.classes.len().max(1);
        let own = at % classes;
        // Two of its own class and three of others, in a random order.
        let others = (0..OTHERS).map(|_| (own + 1 + stream.below(classes.max(2) - 1)) % classes);
        let mut shown: Vec<usize> = others.collect();
        shown.extend([own; OWN]);
        stream.shuffle(&mut shown);
        let mut prompt = format!("{}\n", self.intro);
        for class in shown.iter().filter_map(|class| self.classes.get(*class)) {
            let (about, example) = (pick(&class.about, stream), pick(&class.examples, stream));
            // Writing to a string can't fail.
            let _ = writeln!(prompt, "{about}: {example}");
        }
        let about = self.classes.get(own).map_or("", |class| pick(&class.about, stream));
        format!("{prompt}{about}:")
    }
}

impl RecipeClass {
    /// Whether a line is a text of this class, as far as words tell.
    fn takes(&self, line: &str) -> bool {
        let lower = line.to_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        let stammers = words.windows(2).any(|pair| pair.first() == pair.last());
        let distinct: BTreeSet<&str> = words.iter().copied().collect();
        (LEAST_WORDS..=MOST_WORDS).contains(&words.len())
            && !stammers
            && distinct.len() * 4 >= words.len() * 3
            && !line.chars().any(char::is_control)
            && self.words.iter().any(|word| lower.contains(word.as_str()))
    }
}

/// A text that is being written.
struct Asked {
    prompt: Vec<u32>,
    sampler: Sampler,
    written: Vec<u32>,
    done: bool,
}

/// Writes one line to each prompt; a line ends with a line break, the model's end or after `most` tokens.
fn answers(
    asked: &mut [Asked],
    most: u32,
    generator: &mut dyn Generator,
    tokens: &dyn Tokens,
) -> Result<Vec<String>, LearnError> {
    let mut logits = Vec::with_capacity(asked.len());
    for (id, one) in (0_u64..).zip(asked.iter()) {
        logits.push((id, generator.start(id, 0, &one.prompt)?));
    }
    for _ in 0..most {
        let mut next = Vec::new();
        for (id, logits) in &logits {
            let at = usize::try_from(*id).unwrap_or(usize::MAX);
            let Some(one) = asked.get_mut(at) else { continue };
            let token = one.sampler.pick(logits)?;
            one.done = tokens.is_end(token);
            if !one.done {
                one.written.push(token);
                one.done = tokens.decode(&one.written)?.trim_start().contains('\n');
            }
            if !one.done {
                next.push((*id, token));
            }
        }
        if next.is_empty() {
            break;
        }
        let all = generator.step(&next)?;
        logits = next.into_iter().map(|(id, _)| id).zip(all).collect();
    }
    for (id, _) in (0_u64..).zip(asked.iter()) {
        generator.end(id);
    }
    asked.iter().map(|one| Ok(tokens.decode(&one.written)?.trim_start().to_owned())).collect()
}

fn pick<'a>(list: &'a [String], stream: &mut Stream) -> &'a str {
    list.get(stream.below(list.len().max(1))).map_or("", String::as_str)
}

/// How often a text is asked for.
const ATTEMPTS: u32 = 40;
/// Texts that are written side by side.
const BATCH: usize = 16;
/// Examples of its own class in a prompt.
const OWN: usize = 2;
/// Examples of other classes.
const OTHERS: usize = 3;
/// A text has so many words at least.
const LEAST_WORDS: usize = 2;
/// And at most.
const MOST_WORDS: usize = 12;
/// Most tokens of a text that a recipe may ask for.
const MAX_TOKENS: u32 = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::toy_generator::{ToyGenerator, ToyTokens};

    fn class(name: &str, words: &[&str]) -> RecipeClass {
        let all = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        RecipeClass {
            name: name.into(),
            about: all(&["part a", "part b"]),
            words: all(words),
            examples: all(&["an example"]),
        }
    }

    fn recipe(words: &[&str]) -> ReferenceRecipe {
        ReferenceRecipe {
            name: Name::new("orders-1").unwrap(),
            intro: "orders".into(),
            max_tokens: 9,
            classes: vec![class("Bucket", words), class("Engine", words)],
        }
    }

    #[test]
    fn what_is_taken_has_a_word_of_its_class_and_does_not_stammer() {
        let bucket = class("Bucket", &["tooth", "bucket"]);
        for good in ["replace worn Tooth", "bucket pin loose"] {
            assert!(bucket.takes(good), "{good}");
        }
        for bad in ["tooth", "replace hose", "tooth tooth gone", "a b a b a b bucket", ""] {
            assert!(!bucket.takes(bad), "{bad}");
        }
    }

    #[test]
    fn prompts_end_with_the_class_that_is_asked_for_and_repeat_with_the_seed() {
        let mut recipe = recipe(&["x"]);
        recipe.classes[1].about = vec!["engine".into()];
        let prompt = |at, seed| recipe.prompt(at, &mut Stream::new(seed, "text"));
        assert!(prompt(1, 1).starts_with("orders\n") && prompt(1, 1).ends_with("\nengine:"));
        assert_eq!(prompt(1, 1), prompt(1, 1));
        assert_eq!(prompt(3, 1).lines().count(), 1 + OWN + OTHERS + 1);
        let differs = (2..20).any(|seed| prompt(0, seed) != prompt(0, 1));
        assert!(differs);
    }

    /// Writes `replace tooth a`, `.. tooth b` and so on, a token a character, whatever it is asked.
    #[derive(Default)]
    struct Parrot {
        began: u8,
        lines: std::collections::BTreeMap<u64, Vec<u32>>,
    }

    struct Letters;

    impl Tokens for Letters {
        fn encode(&self, text: &str) -> Result<Vec<u32>, LearnError> {
            Ok(text.chars().map(u32::from).collect())
        }

        fn decode(&self, ids: &[u32]) -> Result<String, LearnError> {
            Ok(ids.iter().filter_map(|id| char::from_u32(*id)).collect())
        }

        fn is_end(&self, _: u32) -> bool {
            false
        }
    }

    impl Parrot {
        fn next(&mut self, sequence: u64) -> Vec<f32> {
            let token = self.lines.get_mut(&sequence).and_then(Vec::pop).unwrap_or(10);
            (0..128).map(|id| if id == token { 9.0 } else { 0.0 }).collect()
        }
    }

    impl Generator for Parrot {
        fn load(&mut self, _: u32, _: &crate::learn::TensorSet) -> Result<(), LearnError> {
            Ok(())
        }

        fn context(&self) -> u32 {
            256
        }

        fn start(&mut self, id: u64, _: u32, _: &[u32]) -> Result<Vec<f32>, LearnError> {
            // Each line twice: the repeat isn't taken, and asked for again.
            let line = format!(" replace tooth {}\n", char::from(b'a' + self.began / 2));
            self.began += 1;
            self.lines.insert(id, Letters.encode(&line)?.into_iter().rev().collect());
            Ok(self.next(id))
        }

        fn step(&mut self, tokens: &[(u64, u32)]) -> Result<Vec<Vec<f32>>, LearnError> {
            Ok(tokens.iter().map(|(id, _)| self.next(*id)).collect())
        }

        fn end(&mut self, sequence: u64) {
            self.lines.remove(&sequence);
        }
    }

    #[test]
    fn a_set_has_each_class_in_turn_and_no_text_twice() {
        let mut recipe = recipe(&["tooth"]);
        recipe.max_tokens = 40;
        let config = WriteConfig { seed: 1, count: 3, sampling: Sampling::GREEDY };
        let mut told = 0;
        let set = recipe
            .write(&config, &mut Parrot::default(), &Letters, "a parrot", &mut |_| told += 1)
            .unwrap();
        assert_eq!(set.texts.len(), 3);
        assert_eq!(told, 3);
        let mut distinct = set.texts.clone();
        distinct.sort();
        assert_eq!(distinct, ["replace tooth a", "replace tooth b", "replace tooth c"]);
        assert_eq!((set.classes.len(), set.labelled), (2, true));
        assert_eq!(ReferenceTexts::parse(&set.to_bytes().unwrap()).unwrap(), set);
    }

    #[test]
    fn a_model_that_never_writes_what_is_asked_for_is_an_error_that_names_the_class() {
        // The toy writes letters without spaces: one word.
        let config = WriteConfig { seed: 1, count: 2, sampling: Sampling::GREEDY };
        let mut toy = ToyGenerator::with_context(256);
        let error =
            recipe(&["x"]).write(&config, &mut toy, &ToyTokens, "a toy", &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("one of Bucket"), "{error}");
    }

    #[test]
    fn a_class_of_which_the_model_knows_no_more_leaves_as_many_of_each() {
        let some = |texts: &[Option<&str>]| {
            let owned = texts.iter().map(|text| text.map(str::to_owned)).collect();
            recipe(&["x"]).in_turn(owned)
        };
        let lacks_one = [Some("b 1"), Some("e 1"), Some("b 2"), None, Some("b 3"), Some("e 2")];
        assert_eq!(some(&lacks_one).unwrap(), ["b 1", "e 1", "b 2", "e 2"]);
        assert_eq!(some(&[Some("b 1"), Some("e 1"), Some("b 2")]).unwrap().len(), 3, "all of them");
        assert!(some(&[Some("b 1"), None]).unwrap_err().to_string().contains("one of Engine"));
    }

    #[test]
    fn recipes_that_ask_for_nothing_are_refused() {
        assert!(recipe(&["x"]).check().is_ok());
        assert!(recipe(&[]).check().is_err() && recipe(&[""]).check().is_err());
        assert!(ReferenceRecipe { max_tokens: 0, ..recipe(&["x"]) }.check().is_err());
        assert!(ReferenceRecipe { classes: vec![], ..recipe(&["x"]) }.check().is_err());
        assert!(recipe(&["x", " "]).check().is_err());
    }

    #[test]
    fn words_in_capitals_and_classes_without_a_name_of_their_own_are_refused() {
        assert!(recipe(&["Tooth"]).check().unwrap_err().to_string().contains("\"Tooth\""));
        for name in ["", " ", "Engine"] {
            let mut nameless = recipe(&["tooth"]);
            nameless.classes[0].name = name.into();
            assert!(nameless.check().is_err(), "{name:?}");
        }
    }
}
