//! Opening and sealing beside bare Ed25519 over the same bytes.

use gaisnet::ids::Side;
use gaisnet::trust::{To, open};

use super::plant::{DEVICE, EDGE, Plant, contribution, key, name};
use super::stats::{Effort, Row, in_turns, micros_each};

pub fn run(effort: Effort, report: &mut dyn FnMut(Row)) {
    for (label, bytes) in [("1 KiB", 1 << 10), ("32 KiB", 32 << 10)] {
        of_size(effort, label, bytes).into_iter().for_each(&mut *report);
    }
}

fn of_size(effort: Effort, label: &str, bytes: usize) -> [Row; 2] {
    let plant = Plant::new();
    let (me, signer) = (name(EDGE), key(DEVICE));
    let mut sealer = plant.sealer(DEVICE);
    let mut seal = |number| {
        let body = contribution(bytes - OVERHEAD_BYTES, number);
        sealer.seal(&To::Named(me.clone()), &body, 1, 1, plant.now).unwrap()
    };
    let (topic, wire) = seal(1);
    // Ed25519 hashes what it signs: as many bytes as the message has.
    let bare = vec![0x5a; wire.len()];
    let signature = signer.sign(&bare);
    let count = effort.count(if bytes > 8 << 10 { 1_000 } else { 4_000 });
    let sealing = in_turns(
        effort,
        || micros_each(count, |number| drop(seal(number as u64))),
        || micros_each(count, |_| assert!(signer.sign(&bare).0[0] == signature.0[0])),
    );
    let opening = in_turns(
        effort,
        || {
            micros_each(count, |_| {
                let door = plant.door(&me);
                assert!(open(door, Side::Down, &topic, &wire, plant.now).is_ok());
            })
        },
        || micros_each(count, |_| assert!(signer.public().verify(&bare, &signature).is_ok())),
    );
    [
        Row::new(format!("envelope seal {label}"), sealing, "us", "Ed25519 sign"),
        Row::new(format!("envelope open {label}"), opening, "us", "Ed25519 verify"),
    ]
}

/// About what head, names and signature of a contribution take beside its delta.
const OVERHEAD_BYTES: usize = 480;
