//! Topic names and topic filters, by the letter of MQTT 3.1.1 section 4.7.
//!
//! For the brokers in this module (in memory and embedded). Any UTF-8 is welcome: nothing here
//! slices a string at a byte position.

/// Whether `filter` selects `topic`. Both must be valid.
///
/// A wildcard in the first level doesn't select topics that start with `$`.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#')) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether every topic that `wanted` selects is selected by `allowed` too. Both must be valid.
#[cfg(feature = "broker")]
pub(super) fn covers(allowed: &str, wanted: &str) -> bool {
    if wanted.starts_with('$') != allowed.starts_with('$') {
        return false;
    }
    let mut levels = wanted.split('/');
    for granted in allowed.split('/') {
        if granted == "#" {
            return true;
        }
        match levels.next() {
            Some("#") | None => return false,
            Some(level) if granted == "+" || granted == level => {}
            Some(_) => return false,
        }
    }
    levels.next().is_none()
}

/// Whether a message may be published on `topic`: not empty, no wildcard, no NUL, at most
/// 65,535 bytes.
pub(super) fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && u16::try_from(topic.len()).is_ok() && !topic.contains(['+', '#', '\0'])
}

/// Whether `filter` may be subscribed: wildcards stand alone in their level, `#` in the last one.
pub(super) fn is_filter(filter: &str) -> bool {
    if filter.is_empty() || u16::try_from(filter.len()).is_err() || filter.contains('\0') {
        return false;
    }
    let mut ended = false;
    for level in filter.split('/') {
        if ended || (level.len() > 1 && level.contains(['+', '#'])) {
            return false;
        }
        ended = level == "#";
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples_of_the_standard_hold() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("#", "ä/ö", true),
            ("ä/+", "ä/ö", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn misplaced_wildcards_are_no_filters() {
        for filter in ["", "a#", "a/#/b", "a+/b", "++", "a\0"] {
            assert!(!is_filter(filter), "{filter}");
        }
        for filter in ["#", "+", "a/+/b/#", "/", "ü/+"] {
            assert!(is_filter(filter), "{filter}");
        }
        assert!(!is_topic("a/+") && !is_topic("") && is_topic("$x/ü"));
    }

    #[test]
    #[cfg(feature = "broker")]
    fn filter_covers_what_is_narrower() {
        for (allowed, wanted, expected) in [
            ("a/#", "a/b/+", true),
            ("a/#", "a", true),
            ("a/+", "a/b", true),
            ("a/+", "a/+", true),
            ("a/+", "a/#", false),
            ("a/b", "a/+", false),
            ("#", "#", true),
            ("#", "$SYS/#", false),
            ("$SYS/#", "$SYS/x", true),
            ("a/+/c", "a/b/c/d", false),
        ] {
            assert_eq!(covers(allowed, wanted), expected, "{allowed} {wanted}");
        }
    }

    #[cfg(feature = "broker")]
    proptest! {
        #[test]
        fn what_a_covered_filter_selects_its_cover_selects(
            allowed in "[ab+]{1}(/[ab+]){0,2}(/#)?",
            wanted in "[ab+]{1}(/[ab+]){0,2}(/#)?",
            topic in "[ab](/[ab]){0,3}",
        ) {
            if covers(&allowed, &wanted) && matches(&wanted, &topic) {
                prop_assert!(matches(&allowed, &topic));
            }
        }
    }

    proptest! {
        #[test]
        fn no_strings_make_it_panic(filter in ".*", topic in ".*") {
            let _ = (matches(&filter, &topic), is_filter(&filter), is_topic(&topic));
        }

        #[test]
        fn a_topic_selects_itself(topic in "[a-zäö0-9/]{1,20}") {
            prop_assert!(matches(&topic, &topic) && matches("#", &topic));
        }
    }
}
