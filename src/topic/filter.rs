//! Topic filters, as MQTT 3.1.1 section 4.7 defines them.
//!
//! Compares levels as text, so topics with any characters are safe here; client libraries' own
//! matchers have panicked on some.

use std::fmt;
use std::str::FromStr;

/// A valid topic filter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter(String);

impl Filter {
    /// Longest filter in bytes, as the protocol has it.
    pub const MAX_LEN: usize = 65_535;

    /// Checks and takes a filter.
    ///
    /// # Errors
    /// [`FilterError`] says which rule it breaks.
    pub fn new(text: impl Into<String>) -> Result<Self, FilterError> {
        let text = text.into();
        if text.is_empty() || text.len() > Self::MAX_LEN || text.contains('\0') {
            return Err(FilterError::Text { bytes: text.len() });
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            let last = levels.peek().is_none();
            if level.contains('#') && !(level == "#" && last) {
                return Err(FilterError::Hash { filter: text });
            }
            if level.contains('+') && level != "+" {
                return Err(FilterError::Plus { filter: text });
            }
        }
        Ok(Self(text))
    }

    /// The filter as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a subscription to this filter gets messages of `topic`.
    ///
    /// A filter that starts with a wildcard never covers a topic that starts with `$`.
    pub fn covers(&self, topic: &str) -> bool {
        if topic.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut topic_levels = topic.split('/');
        for wanted in self.0.split('/') {
            if wanted == "#" {
                return true; // also the parent level itself: a/# covers a
            }
            match topic_levels.next() {
                Some(level) if wanted == "+" || wanted == level => {}
                _ => return false,
            }
        }
        topic_levels.next().is_none()
    }
}

impl FromStr for Filter {
    type Err = FilterError;
    fn from_str(text: &str) -> Result<Self, FilterError> {
        Self::new(text)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Which rule a filter breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// Empty, too long or with a NUL.
    #[error("a topic filter has 1 to 65535 bytes and no NUL, this one has {bytes} bytes")]
    Text {
        /// Its length.
        bytes: usize,
    },
    /// `#` elsewhere than alone at the end.
    #[error("topic filter {filter:?}: '#' may only be the whole last level, as in a/b/#")]
    Hash {
        /// The filter.
        filter: String,
    },
    /// `+` beside other characters.
    #[error("topic filter {filter:?}: '+' must be a whole level, as in a/+/b")]
    Plus {
        /// The filter.
        filter: String,
    },
}

impl FilterError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text { .. } => "filter_text",
            Self::Hash { .. } => "filter_hash",
            Self::Plus { .. } => "filter_plus",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covers(filter: &str, topic: &str) -> bool {
        Filter::new(filter).unwrap().covers(topic)
    }

    #[test]
    fn examples_of_the_standard_hold() {
        for (filter, topic) in [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
            ("#", "sport"),
            ("sport/+", "sport/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("$SYS/#", "$SYS/broker/load"),
            ("$SYS/+/load", "$SYS/broker/load"),
            ("Werk/Prüfstand/+", "Werk/Prüfstand/Ölpumpe"),
        ] {
            assert!(covers(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [
            ("sport/+", "sport"),
            ("sport/+", "sport/a/b"),
            ("+", "/finance"),
            ("sport", "Sport"),
            ("#", "$SYS/broker"),
            ("+/broker", "$SYS/broker"),
            ("a/b", "a/b/c"),
        ] {
            assert!(!covers(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn broken_filters_are_refused_with_their_rule() {
        for (bad, kind) in [
            ("", "filter_text"),
            ("a\0b", "filter_text"),
            ("a/#/b", "filter_hash"),
            ("a#", "filter_hash"),
            ("a/b+", "filter_plus"),
            ("++", "filter_plus"),
        ] {
            assert_eq!(Filter::new(bad).unwrap_err().kind(), kind, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_checked_and_matched_without_panic(filter in any::<String>(), topic in any::<String>()) {
            if let Ok(filter) = Filter::new(filter) {
                let _ = filter.covers(&topic);
            }
        }

        #[test]
        fn a_topic_covers_itself_and_wildcards_only_widen(
            levels in prop::collection::vec("[^/+#\0$]{0,6}", 1..6), at in 0_usize..6,
        ) {
            let topic = levels.join("/");
            prop_assume!(!topic.is_empty());
            prop_assert!(covers(&topic, &topic));
            let at = at % levels.len();
            let mut plus = levels.clone();
            plus[at] = "+".to_owned();
            prop_assert!(covers(&plus.join("/"), &topic));
            let mut hash = levels[..at].to_vec();
            hash.push("#".to_owned());
            prop_assert!(covers(&hash.join("/"), &topic));
            let longer = format!("{topic}/x");
            prop_assert!(!covers(&topic, &longer));
        }
    }
}
