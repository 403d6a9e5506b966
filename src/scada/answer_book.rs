//! Which answers a node gave lately, and what was found out about them later.
//!
//! Bounded in number and age; the oldest go first. An answer gets one label: **the first one stands**, so that a message
//! that the broker delivers again, however late, changes nothing. The same label again is a repeat, another one a
//! contradiction; both are counted and neither changes anything. Nothing here is on disk: labels of answers from before
//! a restart find none.
//!
//! Called by the inferencer, with what [`super::feedback`] has read.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::feedback::{About, FeedbackFault};
use crate::ids::{Digest, Version};
use crate::scada::request_id::RequestId;
use crate::time::Wall;

/// What an [`AnswerBook`] remembers at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BookLimits {
    /// Answers, > 0.
    pub answers: usize,
    /// Their age in milliseconds.
    pub age_ms: u64,
}

impl Default for BookLimits {
    fn default() -> Self {
        Self { answers: 20_000, age_ms: 168 * 3_600_000 }
    }
}

/// An answer that was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// Who was answered.
    pub to: GivenTo,
    /// The version that answered; `None` where another node did.
    pub version: Option<Version>,
    /// Its class.
    pub class: usize,
    /// How sure it was, 0 to 1.
    pub confidence: f64,
    /// When.
    pub at: Wall,
}

/// See [`Given`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenTo {
    /// The request of this id.
    Request(RequestId),
    /// Whoever reads the answers on a tag.
    Tag {
        /// Digest of the tag's topic.
        source: Digest,
        /// When the first sample of its window came.
        began: Wall,
    },
}

/// What labels said of a version's answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Online {
    /// Answers with a label.
    pub labelled: u64,
    /// Of those, right ones.
    pub right: u64,
    /// Sum of their confidences.
    pub confidence: f64,
}

/// What a label did. Numbers are those of [`AnswerBook::give`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labelled {
    /// Answers that it is the label of from now on.
    pub labelled: Vec<u64>,
    /// Answers that had the same one.
    pub repeated: usize,
    /// Answers that have another one, which stands.
    pub contradicted: usize,
}

/// See the module.
#[derive(Debug)]
pub struct AnswerBook {
    limits: BookLimits,
    /// Number of the first of `given`.
    first: u64,
    given: VecDeque<(Given, Option<usize>)>,
    /// The newest answer of each id.
    by_id: BTreeMap<RequestId, u64>,
    online: BTreeMap<Version, Online>,
}

impl AnswerBook {
    /// Versions whose figures are kept: the newest.
    pub const VERSIONS: usize = 16;

    /// An empty one.
    pub fn new(limits: BookLimits) -> Self {
        let (given, by_id, online) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        Self { limits, first: 0, given, by_id, online }
    }

    /// Writes an answer down. Gives its number: each is one higher than the one before.
    pub fn give(&mut self, answer: Given) -> u64 {
        self.forget(answer.at);
        let number = self.first + self.given.len() as u64;
        if let GivenTo::Request(id) = &answer.to {
            self.by_id.insert(id.clone(), number);
        }
        self.given.push_back((answer, None));
        if self.given.len() > self.limits.answers {
            self.drop_first();
        }
        number
    }

    /// Takes the label of a class that came at `now`.
    ///
    /// # Errors
    /// [`FeedbackFault`] where nothing was labelled and nothing is repeated; `names` are those of the classes.
    pub fn label(
        &mut self,
        now: Wall,
        about: &About,
        class: usize,
        names: &[String],
    ) -> Result<Labelled, FeedbackFault> {
        self.forget(now);
        let numbers: Vec<u64> = match about {
            About::Request(id) => self.by_id.get(id).copied().into_iter().collect(),
            About::Span { from, to, source } => {
                let source = source.as_ref().map(|topic| Digest::of(topic.as_bytes()));
                let lies_in = |given: &Given| match &given.to {
                    GivenTo::Request(_) => false,
                    GivenTo::Tag { source: of, began } => {
                        began >= from && given.at <= *to && source.is_none_or(|only| only == *of)
                    }
                };
                let all = (self.first..).zip(&self.given);
                all.filter(|(_, (given, _))| lies_in(given)).map(|(number, _)| number).collect()
            }
        };
        let (mut out, mut stands) = (Labelled::default(), None);
        for number in numbers {
            match self.label_one(number, class) {
                None => out.labelled.push(number),
                Some(other) if other == class => out.repeated += 1,
                Some(other) => {
                    out.contradicted += 1;
                    stands.get_or_insert(other);
                }
            }
        }
        if !out.labelled.is_empty() || out.repeated > 0 {
            return Ok(out);
        }
        Err(match (stands, about) {
            (Some(stands), _) => {
                let stands = names.get(stands).cloned().unwrap_or_else(|| stands.to_string());
                FeedbackFault::Contradicts { answers: out.contradicted, stands }
            }
            (None, About::Request(id)) => FeedbackFault::UnknownRequest { id: id.to_string() },
            (None, About::Span { .. }) => FeedbackFault::NoAnswers,
        })
    }

    /// What labels said, by version: the newest [`AnswerBook::VERSIONS`] that any were about.
    pub fn online(&self) -> &BTreeMap<Version, Online> {
        &self.online
    }

    /// Answers that are remembered.
    pub fn len(&self) -> usize {
        self.given.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// Labels an answer, unless it has a label, which is given.
    fn label_one(&mut self, number: u64, class: usize) -> Option<usize> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let (given, label) = self.given.get_mut(at)?;
        if label.is_some() {
            return *label;
        }
        *label = Some(class);
        if let Some(version) = given.version {
            let online = self.online.entry(version).or_default();
            online.labelled += 1;
            online.right += u64::from(given.class == class);
            online.confidence += given.confidence;
            if self.online.len() > Self::VERSIONS {
                self.online.pop_first();
            }
        }
        None
    }

    fn forget(&mut self, now: Wall) {
        let age_ms = self.limits.age_ms;
        let is_old = |at: Wall| now.0.saturating_sub(at.0) > age_ms;
        while self.given.front().is_some_and(|(given, _)| is_old(given.at)) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        let Some((given, _)) = self.given.pop_front() else { return };
        if let GivenTo::Request(id) = &given.to
            && self.by_id.get(id) == Some(&self.first)
        {
            self.by_id.remove(id);
        }
        self.first += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> RequestId {
        RequestId::new(text).unwrap()
    }

    fn book(answers: usize, age_ms: u64) -> AnswerBook {
        AnswerBook::new(BookLimits { answers, age_ms })
    }

    fn to_request(name: &str, class: usize, at: u64) -> Given {
        let to = GivenTo::Request(id(name));
        Given { to, version: Some(3), class, confidence: 0.9, at: Wall(at) }
    }

    fn on_tag(topic: &str, class: usize, began: u64, at: u64) -> Given {
        let (source, began) = (Digest::of(topic.as_bytes()), Wall(began));
        let to = GivenTo::Tag { source, began };
        Given { to, version: Some(3), class, confidence: 0.6, at: Wall(at) }
    }

    fn span(from: u64, to: u64, source: Option<&str>) -> About {
        About::Span { from: Wall(from), to: Wall(to), source: source.map(str::to_owned) }
    }

    fn label(book: &mut AnswerBook, about: &About, class: usize) -> Result<Labelled, &'static str> {
        let names = ["ok".to_owned(), "worn".to_owned()];
        book.label(Wall(1_000), about, class, &names)
            .map_err(|fault| super::super::feedback::FeedbackError { id: None, fault }.kind())
    }

    #[test]
    fn the_first_label_of_an_answer_stands_and_what_comes_again_changes_nothing() {
        let mut book = book(10, 10_000);
        let number = book.give(to_request("a", 1, 10));
        let about = About::Request(id("a"));
        let labelled = Labelled { labelled: vec![number], ..Labelled::default() };
        assert_eq!(label(&mut book, &about, 1), Ok(labelled));
        let once = book.online().clone();
        assert_eq!(once[&3], Online { labelled: 1, right: 1, confidence: 0.9 });
        // A broker may deliver again, also the first behind a later one.
        for (class, outcome) in [(1, Ok(1)), (0, Err("feedback_contradicts")), (1, Ok(1))] {
            assert_eq!(label(&mut book, &about, class).map(|done| done.repeated), outcome);
        }
        let names = ["ok".to_owned(), "worn".to_owned()];
        let fault = book.label(Wall(1_000), &about, 0, &names).unwrap_err();
        assert!(fault.to_string().contains("\"worn\""), "says which one stands: {fault}");
        assert_eq!(book.online(), &once);
    }

    #[test]
    fn a_request_that_nobody_made_is_refused_and_one_that_was_made_is_not() {
        let mut book = book(10, 10_000);
        book.give(to_request("a", 1, 10));
        let unknown = label(&mut book, &About::Request(id("b")), 1);
        assert_eq!(unknown, Err("feedback_unknown_request"));
        assert!(label(&mut book, &About::Request(id("a")), 1).is_ok());
    }

    #[test]
    fn a_time_labels_the_answers_on_tags_whose_window_lies_wholly_in_it() {
        let mut book = book(10, 10_000);
        for at in 0..5 {
            book.give(on_tag("press/7", 1, at * 10, at * 10 + 9)); // 0..9, 10..19, ...
        }
        book.give(on_tag("press/8", 0, 20, 29));
        book.give(to_request("a", 1, 25));
        let count = |done: Result<Labelled, _>| done.map(|done| done.labelled.len());
        assert_eq!(count(label(&mut book, &span(11, 18, None), 1)), Err("feedback_no_answers"));
        assert_eq!(count(label(&mut book, &span(20, 29, Some("press/7")), 1)), Ok(1));
        // 10..19 and 20..29 of one tag and 20..29 of the other; the edges of 0..9 and 30..39 are outside.
        let done = label(&mut book, &span(5, 35, None), 1).unwrap();
        assert_eq!((done.labelled.len(), done.repeated, done.contradicted), (2, 1, 0));
        let done = label(&mut book, &span(0, 35, Some("press/7")), 0).unwrap();
        assert_eq!((done.labelled.len(), done.contradicted), (1, 2), "the new one only");
        assert_eq!(book.online()[&3], Online { labelled: 4, right: 2, confidence: 4.0 * 0.6 });
        assert!(label(&mut book, &About::Request(id("a")), 1).is_ok(), "no time labels a request");
    }

    #[test]
    fn answers_of_another_node_take_a_label_and_count_for_no_version_here() {
        let mut book = book(10, 10_000);
        book.give(Given { version: None, ..to_request("a", 1, 10) });
        assert_eq!(label(&mut book, &About::Request(id("a")), 1).unwrap().labelled, [0]);
        assert!(book.online().is_empty());
    }

    #[test]
    fn the_oldest_are_forgotten_by_number_and_by_age_and_an_id_names_its_newest_answer() {
        let mut book = book(2, 500);
        for (name, at) in [("a", 10), ("b", 600), ("a", 601)] {
            book.give(to_request(name, 1, at));
        }
        assert_eq!(book.len(), 2);
        assert_eq!(label(&mut book, &About::Request(id("a")), 1).unwrap().labelled, [2]);
        assert!(book.label(Wall(1_101), &About::Request(id("a")), 1, &[]).is_ok());
        let unknown = book.label(Wall(1_101), &About::Request(id("b")), 1, &[]).unwrap_err();
        assert_eq!(unknown, FeedbackFault::UnknownRequest { id: "b".into() });
        assert!(book.label(Wall(1_102), &About::Request(id("a")), 1, &[]).is_err());
        assert!(book.is_empty() && book.by_id.is_empty());
    }

    proptest! {
        #[test]
        fn whatever_comes_in_whatever_order_the_book_stays_within_its_bounds(
            steps in prop::collection::vec((0_u8..4, 0_u64..20, 0_usize..3, 0_u64..400), 0..200),
        ) {
            let mut book = book(8, 100);
            let mut labelled = 0;
            for (what, name, class, at) in steps {
                match what {
                    0 => drop(book.give(to_request(&name.to_string(), class, at))),
                    1 => drop(book.give(on_tag("t", class, at, at + name))),
                    2 => labelled += label(&mut book, &About::Request(id(&name.to_string())), class)
                        .map_or(0, |done| done.labelled.len() as u64),
                    _ => labelled += label(&mut book, &span(at, at + 20, None), class)
                        .map_or(0, |done| done.labelled.len() as u64),
                }
                prop_assert!(book.len() <= 8 && book.by_id.len() <= book.len());
                let seen = book.online().values().map(|online| online.labelled).sum::<u64>();
                prop_assert_eq!(seen, labelled);
            }
        }
    }
}
