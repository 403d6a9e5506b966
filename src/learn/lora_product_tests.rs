use proptest::prelude::*;

use super::*;
use crate::rng::Stream;

const ALPHA: f64 = 16.0;

fn node(at: usize) -> NodeId {
    NodeId::new(format!("n{at:03}")).unwrap()
}

fn tensor(name: &str, shape: &[usize], data: Vec<f32>) -> Tensor {
    Tensor { name: name.into(), shape: shape.to_vec(), data }
}

fn draw(stream: &mut Stream, len: usize) -> Vec<f32> {
    (0..len).map(|_| narrow(stream.range(-1.0, 1.0))).collect()
}

/// An adapter with one pair of the given rank and a head of three values.
fn adapter(stream: &mut Stream, d: usize, k: usize, rank: usize) -> TensorSet {
    TensorSet::new(vec![
        tensor("q.lora_a", &[rank, k], draw(stream, rank * k)),
        tensor("q.lora_b", &[d, rank], draw(stream, d * rank)),
        tensor("head.bias", &[3], draw(stream, 3)),
    ])
    .unwrap()
}

/// `(ALPHA / r) B A`, dense.
fn product(set: &TensorSet) -> Vec<f64> {
    product_of(ALPHA, set)
}

fn product_of(alpha: f64, set: &TensorSet) -> Vec<f64> {
    let (a, b) = (set.get("q.lora_a").unwrap(), set.get("q.lora_b").unwrap());
    let (rank, k) = (a.shape[0], a.shape[1]);
    let mut dense = vec![0.0; b.shape[0] * k];
    for (row, out) in b.data.chunks(rank).zip(dense.chunks_mut(k)) {
        for (x, a) in row.iter().zip(a.data.chunks(k)) {
            let x = f64::from(*x) * alpha / rank_weight(rank);
            out.iter_mut().zip(a).for_each(|(p, y)| *p += x * f64::from(*y));
        }
    }
    dense
}

fn head(set: &TensorSet) -> Vec<f64> {
    set.get("head.bias").unwrap().data.iter().map(|x| f64::from(*x)).collect()
}

/// `global + sum p (member - base)` of dense values.
fn dense_mean(
    of: fn(&TensorSet) -> Vec<f64>,
    global: &TensorSet,
    members: &BTreeMap<NodeId, Contribution<'_>>,
) -> Vec<f64> {
    let mut sum = of(global);
    for member in members.values() {
        let (after, before) = (of(member.adapter), of(member.base));
        for ((s, x), y) in sum.iter_mut().zip(after).zip(before) {
            *s += member.weight * (x - y);
        }
    }
    sum
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Distance of two matrices as a share of the second's length.
fn error(actual: &[f64], expected: &[f64]) -> f64 {
    let gap: Vec<f64> = actual.iter().zip(expected).map(|(x, y)| x - y).collect();
    length(&gap) / length(expected).max(1e-9)
}

fn equal_members<'a>(
    base: &'a TensorSet,
    adapters: &'a [TensorSet],
) -> BTreeMap<NodeId, Contribution<'a>> {
    let weight = 1.0 / rank_weight(adapters.len());
    let member = |adapter| Contribution { weight, adapter, base };
    adapters.iter().enumerate().map(|(at, adapter)| (node(at), member(adapter))).collect()
}

#[test]
fn the_mean_of_products_is_not_the_product_of_the_means() {
    let mut stream = Stream::new(5, "paired");
    let global = adapter(&mut stream, 12, 10, 4);
    let adapters: Vec<TensorSet> = (0..3).map(|_| adapter(&mut stream, 12, 10, 4)).collect();
    let members = equal_members(&global, &adapters);
    let wanted = dense_mean(product, &global, &members);

    let in_product_space = combine(ALPHA, 10, &global, &members).unwrap().adapter;
    assert!(error(&product(&in_product_space), &wanted) < 1e-6);

    let mut by_factor = super::super::Accumulator::new(&global.layout()).unwrap();
    for adapter in &adapters {
        by_factor.add(1.0 / 3.0, adapter).unwrap();
    }
    assert!(error(&product(&by_factor.finish().unwrap()), &wanted) > 0.5);
}

#[test]
fn a_fresh_adapter_whose_products_are_all_zero_stays_usable() {
    let mut stream = Stream::new(6, "fresh");
    let mut fresh = adapter(&mut stream, 5, 7, 4);
    fresh.values_mut().nth(2).unwrap().fill(0.0);
    let members = equal_members(&fresh, std::slice::from_ref(&fresh));
    for rank in [1, 4, 6, 9] {
        let new = combine(ALPHA, rank, &fresh, &members).unwrap();
        assert!(new.discarded_energy["q"].abs() < 1e-12);
        assert!(new.adapter.get("q.lora_b").unwrap().data.iter().all(|x| *x == 0.0));
        let a = new.adapter.get("q.lora_a").unwrap();
        let alive = a.data.chunks(7).filter(|row| row.iter().any(|x| *x != 0.0)).count();
        assert_eq!(alive, rank.min(7), "each row can still be trained");
    }
    let passed_on = stack(ALPHA, 2, &fresh, &members).unwrap().adapter;
    assert!(product(&passed_on).iter().all(|x| *x == 0.0));
}

#[test]
fn a_rank_above_the_products_own_is_filled_with_directions_that_carry_nothing() {
    let mut stream = Stream::new(7, "filled");
    let global = adapter(&mut stream, 8, 9, 5);
    let one = [adapter(&mut stream, 8, 9, 2)];
    let new = combine(ALPHA, 5, &global, &equal_members(&global, &one)).unwrap().adapter;
    assert!(error(&product(&new), &product(&one[0])) < 1e-6);
    let (a, b) = (new.get("q.lora_a").unwrap(), new.get("q.lora_b").unwrap());
    for row in b.data.chunks(5) {
        assert_eq!(row[2..], [0.0; 3]);
    }
    for (at, row) in a.data.chunks(9).enumerate() {
        for (other_at, other) in a.data.chunks(9).enumerate() {
            let dot: f32 = row.iter().zip(other).map(|(x, y)| x * y).sum();
            assert!((dot - if at == other_at { 1.0 } else { 0.0 }).abs() < 1e-6);
        }
    }
}

#[test]
fn when_all_trained_from_the_current_version_its_values_do_not_matter() {
    let mut stream = Stream::new(8, "cancel");
    let adapters = [adapter(&mut stream, 6, 7, 2), adapter(&mut stream, 6, 7, 2)];
    let mut results = Vec::new();
    for _ in 0..2 {
        let global = adapter(&mut stream, 6, 7, 2);
        let copy = global.clone(); // equal by value is enough
        results.push(combine(ALPHA, 2, &global, &equal_members(&copy, &adapters)).unwrap());
    }
    assert_eq!(results[0], results[1]);
}

#[test]
fn what_a_relay_stacks_is_what_its_members_would_have_given() {
    let mut stream = Stream::new(9, "relay");
    let global = adapter(&mut stream, 11, 9, 3);
    let adapters: Vec<TensorSet> = (1..=4).map(|r| adapter(&mut stream, 11, 9, r)).collect();
    let direct = combine(ALPHA, 3, &global, &equal_members(&global, &adapters)).unwrap();
    // two sites of two devices each, then the cloud
    let site = |devices| {
        let members = equal_members(&global, devices);
        let stacked = stack(ALPHA, 16, &global, &members).unwrap();
        assert!(stacked.discarded_energy["q"].abs() < 1e-12);
        let wanted = dense_mean(product, &global, &members);
        assert!(error(&product(&stacked.adapter), &wanted) < 1e-6);
        stacked.adapter
    };
    let sites = [site(&adapters[..2]), site(&adapters[2..])];
    let ranks = sites.each_ref().map(|s| s.get("q.lora_a").unwrap().shape[0]);
    assert_eq!(ranks, [1 + 2, 3 + 4]);
    let relayed = combine(ALPHA, 3, &global, &equal_members(&global, &sites)).unwrap();
    assert!(error(&product(&relayed.adapter), &product(&direct.adapter)) < 1e-5);
    assert!((relayed.discarded_energy["q"] - direct.discarded_energy["q"]).abs() < 1e-6);
}

#[test]
fn a_stack_above_its_cap_is_truncated_to_it() {
    let mut stream = Stream::new(10, "cap");
    let global = adapter(&mut stream, 11, 9, 2);
    let adapters: Vec<TensorSet> = (0..4).map(|_| adapter(&mut stream, 11, 9, 2)).collect();
    let members = equal_members(&global, &adapters);
    let capped = stack(ALPHA, 5, &global, &members).unwrap();
    assert_eq!(capped.adapter.get("q.lora_b").unwrap().shape, [11, 5]);
    let truncated = combine(ALPHA, 5, &global, &members).unwrap();
    assert_eq!(capped, truncated);
    assert!(capped.discarded_energy["q"] > 0.0);
}

#[test]
fn a_thousand_members_are_summed_in_bounded_memory() {
    let mut stream = Stream::new(11, "many");
    let global = adapter(&mut stream, 12, 10, 4);
    let mut sum = LoraAverage::new(ALPHA, &global).unwrap();
    let mut wanted = vec![0.0; 120];
    for _ in 0..1000 {
        let member = adapter(&mut stream, 12, 10, 4);
        sum.add(0.001, &member, &global).unwrap();
        wanted.iter_mut().zip(product(&member)).for_each(|(s, x)| *s += 0.001 * x);
        assert!(sum.products[0].columns() <= 512);
    }
    let new = sum.truncate(10).unwrap();
    assert!(error(&product(&new.adapter), &wanted) < 1e-5);
}

#[test]
fn adapters_that_do_not_fit_are_refused_and_add_nothing() {
    let mut stream = Stream::new(12, "refused");
    let global = adapter(&mut stream, 4, 5, 2);
    let good = adapter(&mut stream, 4, 5, 3);
    let without = |name: &str| {
        let rest = good.tensors().iter().filter(|t| t.name != name).cloned();
        TensorSet::new(rest.collect()).unwrap()
    };
    let with = |extra: Tensor| {
        let rest = good.tensors().iter().filter(|t| t.name != extra.name).cloned();
        TensorSet::new(rest.chain([extra.clone()]).collect()).unwrap()
    };
    let hostile = [
        without("q.lora_a"),
        without("q.lora_b"),
        without("head.bias"),
        adapter(&mut stream, 4, 6, 2),
        adapter(&mut stream, 3, 5, 2),
        with(tensor("q.lora_b", &[4, 2], vec![0.0; 8])),
        with(tensor("q.lora_b", &[12], vec![0.0; 12])),
        with(tensor("head.bias", &[4], vec![0.0; 4])),
        with(tensor("extra", &[1], vec![0.0])),
        with(tensor("p.lora_a", &[1, 5], vec![0.0; 5])),
        with(tensor("head.bias", &[3], vec![0.0, f32::NAN, 0.0])),
        with(tensor("q.lora_b", &[4, 3], vec![f32::INFINITY; 12])),
    ];
    let mut sum = LoraAverage::new(ALPHA, &global).unwrap();
    for bad in &hostile {
        let kind = sum.add(1.0, bad, &global).unwrap_err().kind();
        assert!(["layout_mismatch", "not_finite"].contains(&kind), "{bad:?}");
        assert!(sum.add(1.0, &good, bad).is_err(), "as a base: {bad:?}");
    }
    assert_eq!(sum.add(f64::NAN, &good, &global).unwrap_err().kind(), "out_of_range");
    assert_eq!(sum.clone().truncate(2).unwrap_err(), LearnError::NoUpdates);
    sum.add(1.0, &good, &global).unwrap();
    assert!(error(&product(&sum.truncate(3).unwrap().adapter), &product(&good)) < 1e-6);
}

#[test]
fn settings_out_of_range_are_refused() {
    let mut stream = Stream::new(13, "settings");
    let global = adapter(&mut stream, 4, 5, 2);
    let one = equal_members(&global, std::slice::from_ref(&global));
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(combine(alpha, 2, &global, &one).unwrap_err().kind(), "out_of_range");
    }
    assert_eq!(combine(ALPHA, 0, &global, &one).unwrap_err().kind(), "out_of_range");
    assert_eq!(stack(ALPHA, 0, &global, &one).unwrap_err().kind(), "out_of_range");
    let nobody = BTreeMap::new();
    assert_eq!(combine(ALPHA, 2, &global, &nobody).unwrap_err(), LearnError::NoUpdates);
}

#[test]
fn the_largest_values_overflow_into_an_error_not_into_nan() {
    let huge = |value: f32| {
        TensorSet::new(vec![
            tensor("q.lora_a", &[2, 3], vec![value; 6]),
            tensor("q.lora_b", &[3, 2], vec![value; 6]),
        ])
        .unwrap()
    };
    let (start, most) = (huge(0.0), huge(f32::MAX));
    let members = equal_members(&start, std::slice::from_ref(&most));
    assert_eq!(combine(ALPHA, 2, &start, &members).unwrap_err().kind(), "not_finite");
    let tiny = huge(f32::MIN_POSITIVE);
    let members = equal_members(&start, std::slice::from_ref(&tiny));
    combine(ALPHA, 2, &start, &members).unwrap();
}

fn matrix(value: &serde_json::Value) -> (Vec<usize>, Vec<f64>) {
    let rows: Vec<Vec<f64>> = serde_json::from_value(value.clone()).unwrap();
    (vec![rows.len(), rows[0].len()], rows.concat())
}

fn golden_adapter(value: &serde_json::Value) -> TensorSet {
    let read = |key: &str, name: &str| {
        let (shape, data) = matrix(&value[key]);
        tensor(name, &shape, data.into_iter().map(narrow).collect())
    };
    let tensors = [("lora_a", "q.lora_a"), ("lora_b", "q.lora_b"), ("head", "head.bias")];
    TensorSet::new(tensors.map(|(key, name)| read(key, name)).into()).unwrap()
}

/// Values by `tests/golden/lora_product/make.py` (numpy, dense). Tolerance 2e-6 absolute on values
/// of magnitude about 1: the rounding of B and A to f32.
#[test]
fn averages_agree_with_numpy() {
    let text = include_str!("../../tests/golden/lora_product/golden.json");
    let golden: serde_json::Value = serde_json::from_str(text).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let alpha = case["alpha"].as_f64().unwrap();
        let rank = usize::try_from(case["rank"].as_u64().unwrap()).unwrap();
        let global = golden_adapter(&case["global"]);
        let sets: Vec<(f64, TensorSet, TensorSet)> = case["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|member| {
                let base = &member["base"];
                let base = if base.is_null() { global.clone() } else { golden_adapter(base) };
                (member["weight"].as_f64().unwrap(), golden_adapter(&member["adapter"]), base)
            })
            .collect();
        let members = sets
            .iter()
            .enumerate()
            .map(|(at, (weight, adapter, base))| {
                (node(at), Contribution { weight: *weight, adapter, base })
            })
            .collect();
        let check = |what: &str, actual: &[f64], expected: &[f64], tolerance: f64| {
            assert_eq!(actual.len(), expected.len(), "{name}: {what}");
            for (x, y) in actual.iter().zip(expected) {
                assert!((x - y).abs() <= tolerance, "{name}: {what}: {x} is not {y}");
            }
        };
        let expected = &case["expected"];
        let new = combine(alpha, rank, &global, &members).unwrap();
        for key in ["lora_a", "lora_b"] {
            let own = new.adapter.get(&format!("q.{key}")).unwrap();
            let (shape, values) = matrix(&expected[key]);
            assert_eq!(own.shape, shape, "{name}: {key}");
            let own: Vec<f64> = own.data.iter().map(|x| f64::from(*x)).collect();
            check(key, &own, &values, 2e-6);
        }
        check("head", &head(&new.adapter), &matrix(&expected["head"]).1, 2e-6);
        let energy = expected["discarded_energy"].as_f64().unwrap();
        check("energy", &[new.discarded_energy["q"]], &[energy], 1e-12);
        let whole = stack(alpha, 99, &global, &members).unwrap().adapter;
        // entries of the product are up to 30 in magnitude
        check("stack", &product_of(alpha, &whole), &matrix(&expected["product"]).1, 2e-5);
    }
}

proptest! {
    #[test]
    fn averages_are_exact_at_full_rank_for_mixed_ranks_and_late_members(
        seed in any::<u64>(), d in 1..9_usize, k in 1..9_usize,
        shape in prop::collection::vec((1..6_usize, 0.01_f64..1.0, prop::option::of(1..4_usize)), 1..6),
    ) {
        let mut stream = Stream::new(seed, "exact");
        let global = adapter(&mut stream, d, k, 2);
        let total: f64 = shape.iter().map(|(_, weight, _)| weight).sum();
        let sets: Vec<(f64, TensorSet, TensorSet)> = shape.iter().map(|(rank, weight, late)| {
            let base = late.map_or(global.clone(), |rank| adapter(&mut stream, d, k, rank));
            (weight / total, adapter(&mut stream, d, k, *rank), base)
        }).collect();
        let member = |at: usize| {
            let (weight, adapter, base) = &sets[at];
            (node(at), Contribution { weight: *weight, adapter, base })
        };
        let members = (0..sets.len()).map(member).collect();
        let wanted = dense_mean(product, &global, &members);
        let new = combine(ALPHA, d.min(k), &global, &members).unwrap();
        prop_assert!(error(&product(&new.adapter), &wanted) < 1e-5);
        prop_assert!(new.discarded_energy["q"] < 1e-12);
        let bias = dense_mean(head, &global, &members);
        prop_assert!(error(&head(&new.adapter), &bias) < 1e-5);
        let whole = stack(ALPHA, 1000, &global, &members).unwrap();
        prop_assert!(error(&product(&whole.adapter), &wanted) < 1e-5);
        // arrival order is not seen; other names give another order of sums, so other roundings
        let arrived = (0..sets.len()).rev().map(member).collect();
        prop_assert_eq!(&combine(ALPHA, d.min(k), &global, &arrived).unwrap(), &new);
        let renamed = (0..sets.len()).map(|at| (node(99 - at), member(at).1)).collect();
        let renamed = combine(ALPHA, d.min(k), &global, &renamed).unwrap().adapter;
        prop_assert!(error(&product(&renamed), &wanted) < 1e-5);
    }

    #[test]
    fn what_truncation_leaves_out_is_the_discarded_energy(
        seed in any::<u64>(), members in 1..5_usize, rank in 1..8_usize,
    ) {
        let mut stream = Stream::new(seed, "truncated");
        let global = adapter(&mut stream, 8, 7, 2);
        let adapters: Vec<TensorSet> = (0..members).map(|_| adapter(&mut stream, 8, 7, 2)).collect();
        let members = equal_members(&global, &adapters);
        let wanted = dense_mean(product, &global, &members);
        let new = combine(ALPHA, rank, &global, &members).unwrap();
        let left_out = error(&product(&new.adapter), &wanted).powi(2);
        prop_assert!((left_out - new.discarded_energy["q"]).abs() < 1e-6);
    }

    #[test]
    fn products_of_low_rank_and_repeated_singular_values_come_back(
        seed in any::<u64>(), zeros in 0..8_usize, same in any::<bool>(),
    ) {
        let mut stream = Stream::new(seed, "deficient");
        let mut member = adapter(&mut stream, 8, 8, 8);
        // B and A of ones and zeros: a partial identity, or rows that are all alike
        for (values, is_factor) in member.values_mut().zip([false, true, true]) {
            for (at, x) in values.iter_mut().enumerate().filter(|_| is_factor) {
                let one = if same { at % 8 >= zeros } else { at % 9 == 0 && at / 9 >= zeros };
                *x = if one { 1.0 } else { 0.0 };
            }
        }
        let global = adapter(&mut stream, 8, 8, 2);
        let one = [member.clone()];
        let new = combine(ALPHA, 8, &global, &equal_members(&global, &one)).unwrap();
        prop_assert!(error(&product(&new.adapter), &product(&member)) < 1e-5);
    }
}
