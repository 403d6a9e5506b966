//! Who may connect, subscribe and publish.

use ring::digest::{SHA256, digest};

use super::{BrokerError, BrokerUser};
use crate::bus::filter;

/// The broker's users.
#[derive(Debug)]
pub(super) struct Access {
    users: Vec<BrokerUser>,
}

/// One client's rights: those of its user.
#[derive(Debug, Clone)]
pub(super) struct Rights {
    /// Empty when the broker has no users.
    pub(super) user: String,
    /// Read and write filters; `None` allows everything.
    filters: Option<(Vec<String>, Vec<String>)>,
}

impl Access {
    pub(super) fn new(users: Vec<BrokerUser>) -> Self {
        Self { users }
    }

    /// The rights that go with a login, if it is good.
    pub(super) fn admit(&self, name: &str, password: &str) -> Option<Rights> {
        if self.users.is_empty() {
            return Some(Rights { user: String::new(), filters: None });
        }
        // Digests are compared, so that the time tells nothing about the password.
        let given = digest(&SHA256, password.as_bytes());
        let user = self.users.iter().find(|user| user.name == name)?;
        let known = digest(&SHA256, user.password.as_bytes());
        let filters = Some((user.read.clone(), user.write.clone()));
        (known.as_ref() == given.as_ref()).then(|| Rights { user: user.name.clone(), filters })
    }
}

impl Rights {
    /// Whether this filter, as a whole, may be subscribed.
    pub(super) fn may_read(&self, wanted: &str) -> bool {
        match &self.filters {
            None => true,
            Some((read, _)) => read.iter().any(|allowed| filter::covers(allowed, wanted)),
        }
    }

    pub(super) fn may_write(&self, topic: &str) -> bool {
        // Ours: traffic figures and the like.
        if topic.starts_with('$') {
            return false;
        }
        match &self.filters {
            None => true,
            Some((_, write)) => write.iter().any(|allowed| filter::matches(allowed, topic)),
        }
    }
}

/// Finds users that can't work.
///
/// # Errors
/// [`BrokerError::Setting`].
pub(super) fn check(users: &[BrokerUser]) -> Result<(), BrokerError> {
    let problem = |problem| Err(BrokerError::Setting { key: "users", problem });
    for (position, user) in users.iter().enumerate() {
        if user.name.is_empty() || user.password.is_empty() {
            return problem(format!("hold one without name or password: {:?}", user.name));
        }
        if users.iter().skip(position + 1).any(|other| other.name == user.name) {
            return problem(format!("hold {:?} twice", user.name));
        }
        for wanted in user.read.iter().chain(&user.write) {
            if !filter::is_filter(wanted) {
                return problem(format!("hold {:?} with {wanted:?}, no topic filter", user.name));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        let user = BrokerUser {
            name: "press".into(),
            password: "secret".into(),
            read: vec!["p/press/cmd/#".into()],
            write: vec!["p/press/#".into()],
        };
        Access::new(vec![user])
    }

    #[test]
    fn only_the_right_password_is_admitted() {
        let access = access();
        assert!(access.admit("press", "secret").is_some());
        assert!(access.admit("press", "Secret").is_none());
        assert!(access.admit("other", "secret").is_none());
        assert!(access.admit("", "").is_none());
    }

    #[test]
    fn rights_end_where_the_filters_end() {
        let rights = access().admit("press", "secret").unwrap();
        assert!(rights.may_write("p/press/kpi") && !rights.may_write("p/other/kpi"));
        assert!(rights.may_read("p/press/cmd/+") && !rights.may_read("p/press/#"));
        assert!(!rights.may_read("#") && !rights.may_write("$SYS/x"));
    }

    #[test]
    fn without_users_everything_but_our_own_topics_is_allowed() {
        let rights = Access::new(Vec::new()).admit("x", "y").unwrap();
        assert!(rights.may_read("#") && rights.may_read("$SYS/#") && rights.may_write("a"));
        assert!(!rights.may_write("$SYS/gaisnet/bytes"));
    }
}
