use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: Wall = Wall(1_700_000_000_000);

fn open_policy() -> CommandPolicy {
    let plain =
        ["status", "round.start", "pause", "resume", "model.list", "rollout.status", "infer"];
    CommandPolicy::new(plain).unwrap()
}

fn plain(name: &str, payload: &str) -> Result<Command, CommandError> {
    parse(name, payload.as_bytes(), false, NOW, &open_policy())
}

fn id(text: &str) -> Option<RequestId> {
    RequestId::new(text).ok()
}

#[test]
fn harmless_commands_work_without_id_and_arguments() {
    for (name, action) in [
        ("status", Action::Status),
        ("round.start", Action::RoundStart),
        ("pause", Action::Pause),
        ("resume", Action::Resume),
        ("model.list", Action::ModelList),
    ] {
        for payload in ["{}", " {\"args\":{}} "] {
            assert_eq!(plain(name, payload), Ok(Command { id: None, action: action.clone() }));
        }
    }
}

#[test]
fn an_empty_payload_asks_but_changes_nothing() {
    for kind in CommandKind::ALL.into_iter().filter(|kind| !kind.needs_signature()) {
        for payload in ["", " \n"] {
            let outcome = plain(kind.as_str(), payload).map_err(|error| error.kind());
            assert_eq!(outcome.is_ok(), kind.only_asks(), "{kind:?}");
            assert!(kind.only_asks() || outcome == Err("empty"), "{kind:?}");
        }
    }
}

#[test]
fn the_id_is_echoed_in_answers_and_in_refusals() {
    assert_eq!(plain("status", r#"{"id":"q-1"}"#).unwrap().id, id("q-1"));
    let refused = plain("status", r#"{"id":"q-2","argz":{}}"#).unwrap_err();
    assert_eq!(refused.id, id("q-2"));
    assert_eq!(
        serde_json::to_value(refused.reply()).unwrap(),
        json!({"id": "q-2", "status": "error", "data": null, "error": {
            "kind": "unknown_field",
            "message": "unknown field \"argz\": known here are id, exp, args",
            "hint": "remove the field or correct its name",
        }})
    );
}

#[test]
fn malformed_commands_are_refused_with_what_is_wrong() {
    for (name, payload, kind, message) in [
        ("status", "{id:1}", "not_json", "the payload is not JSON: key must be a string at line 1"),
        ("status", "[1]", "not_an_object", "got an array of 1"),
        ("status", r#"{"id":7}"#, "wrong_field", "field \"id\": expected a text"),
        ("status", r#"{"args":[]}"#, "wrong_field", "field \"args\": expected an object"),
        ("status", r#"{"args":{"x":1}}"#, "unknown_field", "unknown field \"args.x\""),
        ("status", r#"{"exp":"soon"}"#, "wrong_field", "field \"exp\": expected a whole number"),
        ("status", r#"{"exp":-1}"#, "wrong_field", "got the number -1"),
        ("reboot", "{}", "unknown_command", "no command is called \"reboot\""),
        ("config.set", "{}", "needs_signature", "command \"config.set\" needs a signature"),
    ] {
        let error = plain(name, payload).unwrap_err();
        assert_eq!(error.kind(), kind, "{payload}");
        assert!(error.to_string().contains(message), "{error}");
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn ten_megabytes_are_refused_before_parsing_and_the_largest_good_one_is_taken() {
    let huge = vec![b'['; 10_000_000];
    let error = parse("status", &huge, false, NOW, &open_policy()).unwrap_err();
    assert_eq!(error.fault, CommandFault::TooLarge { bytes: 10_000_000 });
    let mut largest = br#"{"id":"1"}"#.to_vec();
    largest.resize(MAX_COMMAND_BYTES, b' ');
    assert!(parse("status", &largest, false, NOW, &open_policy()).is_ok());
}

#[test]
fn deep_nesting_is_refused_without_overflow() {
    let deep = format!("{{\"args\":{}", "[".repeat(MAX_COMMAND_BYTES - 20));
    assert_eq!(plain("status", &deep).unwrap_err().kind(), "not_json");
}

#[test]
fn expired_commands_are_refused_and_those_in_time_are_not() {
    let with = |exp: u64| plain("pause", &format!(r#"{{"id":"1","exp":{exp}}}"#));
    assert!(with(NOW.0).is_ok());
    assert_eq!(with(NOW.0 - 1).unwrap_err().kind(), "expired");
    let seconds = with(NOW.0 / 1000).unwrap_err();
    assert!(seconds.hint().contains("milliseconds"));
}

#[test]
fn a_retained_command_is_answered_but_not_carried_out() {
    let payload = br#"{"id":"old"}"#;
    let error = parse("round.start", payload, true, NOW, &open_policy()).unwrap_err();
    assert_eq!((error.kind(), error.id), ("retained", id("old")));
    assert!(parse("round.start", payload, false, NOW, &open_policy()).is_ok());
}

#[test]
fn without_the_policy_even_harmless_commands_need_a_signature() {
    let closed = CommandPolicy::default();
    let error = parse("status", b"{}", false, NOW, &closed).unwrap_err();
    assert_eq!(error.kind(), "needs_signature");
    assert!(parse_signed("status", b"{}", NOW).is_ok());
    assert!(!closed.allows_infer() && open_policy().allows_infer());
}

#[test]
fn no_setting_makes_a_dangerous_command_plain() {
    for kind in CommandKind::ALL.into_iter().filter(|kind| kind.needs_signature()) {
        let error = CommandPolicy::new([kind.as_str()]).unwrap_err();
        assert_eq!(error, PolicyError::AlwaysSigned { name: kind.as_str() });
    }
    assert_eq!(CommandPolicy::new(["nonsense"]).unwrap_err().kind(), "policy_unknown");
}

#[test]
fn signed_commands_carry_checked_arguments() {
    let signed = |name: &str, args: Value| {
        parse_signed(name, json!({"id": "1", "args": args}).to_string().as_bytes(), NOW)
            .map(|command| command.action)
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        signed("config.set", json!({"key": "strategy.rank", "value": 16})),
        Ok(Action::ConfigSet { key: "strategy.rank".to_owned(), value: json!(16) })
    );
    assert_eq!(
        signed("rollback", json!({"model": "bearing", "version": 3})),
        Ok(Action::Rollback { model: Name::new("bearing").unwrap(), version: Some(3) })
    );
    assert_eq!(
        signed("rollback", json!({"model": "bearing"})),
        Ok(Action::Rollback { model: Name::new("bearing").unwrap(), version: None })
    );
    assert_eq!(
        signed("version.release", json!({"model": "bearing", "version": 3})),
        Ok(Action::VersionRelease { model: Name::new("bearing").unwrap(), version: 3 })
    );
    assert_eq!(
        signed("version.floor", json!({"model": "bearing", "version": 3})),
        Ok(Action::VersionFloor { model: Name::new("bearing").unwrap(), version: 3 })
    );
    assert_eq!(
        signed("keyring.update", json!({"version": 2, "digest": "ab".repeat(32)})),
        Ok(Action::KeyringUpdate { version: 2, digest: Digest([0xab; 32]) })
    );
    for (name, args, message) in [
        ("rollback", json!({"version": 3}), "field \"args.model\" is missing"),
        ("version.release", json!({"model": "a"}), "field \"args.version\" is missing"),
        ("version.floor", json!({"version": 3}), "field \"args.model\" is missing"),
        (
            "rollback",
            json!({"model": "a/b", "version": 3}),
            "field \"args.model\": expected a name",
        ),
        ("rollback", json!({"model": "a", "version": 1.5}), "field \"args.version\": expected"),
        ("config.set", json!({"key": "a.b", "value": {}}), "field \"args.value\": expected a text"),
        ("keyring.update", json!({"version": 2, "digest": "xy"}), "expected 64 hexadecimal"),
    ] {
        let error = signed(name, args).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn envelopes_are_told_from_json_by_their_first_byte() {
    assert!(is_signed(&[0x94, 0x01]));
    for json in ["", "{}", " {}", "null", "\"x\""] {
        assert!(!is_signed(json.as_bytes()), "{json:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer_of_bounded_size(
        name in any::<String>(),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        retained in any::<bool>(),
    ) {
        if let Err(error) = parse(&name, &payload, retained, NOW, &open_policy()) {
            prop_assert!(serde_json::to_vec(&error.reply()).unwrap().len() < 2_000);
        }
        let _ = parse_signed(&name, &payload, NOW);
    }

    #[test]
    fn any_json_object_gets_an_answer(
        fields in prop::collection::btree_map("id|exp|args|[a-z]{1,5}", "\"[a-z]{0,80}\"|[0-9]{1,30}|\\{\\}|null|\\[1\\]", 0..4),
    ) {
        let body: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        let payload = format!("{{{}}}", body.join(","));
        if let Ok(command) = plain("status", &payload) {
            prop_assert_eq!(command.action, Action::Status);
            prop_assert!(fields.keys().all(|key| ["id", "exp", "args"].contains(&key.as_str())));
        }
    }
}
