//! What topics, filters and client ids are called inside the router.
//!
//! rumqttd's router panics on a topic whose first character isn't ASCII, drops `$` topics, refuses
//! client ids with `+ $ # /`, and forgets the QoS a message was published with. So a topic gets two
//! levels in front: `n` (or `s` for `$` topics, which wildcards mustn't select) and its QoS.

/// A topic as the router knows it.
pub(super) fn inner_topic(topic: &str, qos: u8) -> String {
    format!("{}/{}/{topic}", space(topic), qos.min(1))
}

/// A filter as the router knows it: messages of either QoS.
pub(super) fn inner_filter(filter: &str) -> String {
    format!("{}/+/{filter}", space(filter))
}

/// QoS and topic as the publisher gave them.
pub(super) fn outer_topic(inner: &str) -> Option<(u8, &str)> {
    let rest = inner.strip_prefix("n/").or_else(|| inner.strip_prefix("s/"))?;
    let (qos, topic) = rest.split_once('/')?;
    Some((qos.parse().ok()?, topic))
}

/// A client id as the router knows it. Each user has its own ids, so that nobody takes over
/// another one's session.
pub(super) fn inner_client(user: &str, client: &str) -> String {
    format!("c{}.{}", hex::encode(user), hex::encode(client))
}

/// A client that gave no id.
pub(super) fn inner_nameless(number: u64) -> String {
    format!("t{number}")
}

fn space(topic_or_filter: &str) -> char {
    if topic_or_filter.starts_with('$') { 's' } else { 'n' }
}

/// The health check's client and topic; no client can reach them.
pub(super) const HOUSE: &str = "house";
/// See [`HOUSE`].
pub(super) const HEARTBEAT: &str = "h/beat";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rumqttd::protocol::matches;

    use super::*;
    use crate::bus::filter;

    #[test]
    fn clients_cannot_name_the_house() {
        assert_ne!(inner_client("", HOUSE), HOUSE);
        assert_ne!(inner_topic(HEARTBEAT, 0), HEARTBEAT);
        assert!(!matches(HEARTBEAT, &inner_filter("#")));
    }

    proptest! {
        #[test]
        fn mapped_names_match_as_the_standard_says(
            filter in "[ä+$b]{1}(/[ä+b]){0,2}(/#)?",
            topic in "[ä$b](/[äb]){0,3}",
        ) {
            let mapped = matches(&inner_topic(&topic, 1), &inner_filter(&filter));
            prop_assert_eq!(mapped, filter::matches(&filter, &topic));
        }

        #[test]
        fn topics_come_back_as_they_went_in(topic in "[^+#\0]{1,40}", qos in 0..2_u8) {
            let inner = inner_topic(&topic, qos);
            prop_assert!(inner.is_char_boundary(1));
            prop_assert_eq!(outer_topic(&inner), Some((qos, topic.as_str())));
        }
    }
}
