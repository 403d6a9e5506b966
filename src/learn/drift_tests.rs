use super::*;
use crate::learn::lower_bound;
use crate::rng::Stream;

fn config(alpha: f64) -> DriftConfig {
    DriftConfig { reference: 100, recent: 50, every: 1, alpha }
}

/// A draw of one of some distributions.
fn draw(rng: &mut Stream, of: usize) -> f64 {
    match of {
        0 => rng.normal(),
        1 => rng.unit(),
        2 => 1.0 / (1e-9 + rng.unit()), // no mean
        _ => -(1.0 - rng.unit()).ln(),
    }
}

/// That a rate is above `most` would come out less often than one time in ten thousand.
fn is_at_most(hits: u64, draws: u64, most: f64) -> bool {
    lower_bound(hits, draws, 1e-4) <= most
}

#[test]
fn inputs_that_did_not_change_alarm_no_more_often_than_alpha_says_whatever_they_are() {
    let alpha = 0.05;
    for (kind, alike) in [(0, false), (1, false), (2, false), (3, true)] {
        let mut rng = Stream::new(7, "drift");
        let (mut alarms, runs) = (0, 600);
        for _ in 0..runs {
            let mut drift = InputDrift::new(config(alpha));
            let looks = (0..150).filter_map(|_| {
                let one = draw(&mut rng, kind);
                let mut other = || if alike { one } else { draw(&mut rng, kind) };
                drift.see([one, other(), other(), other()])
            });
            alarms += looks.filter(|look| look.drifted).count() as u64;
        }
        assert!(is_at_most(alarms, runs, alpha), "{kind}: {alarms} of {runs}");
        // Features that are one and the same share one alarm in four; else little of alpha is given away.
        assert!(alarms > if alike { 0 } else { runs / 50 }, "{kind}: {alarms} of {runs}");
    }
}

#[test]
fn without_the_share_of_each_feature_four_of_them_alarm_too_often() {
    let mut rng = Stream::new(8, "drift");
    let (mut alarms, runs, alpha) = (0, 600, 0.05);
    for _ in 0..runs {
        let mut drift = InputDrift::new(config(alpha));
        let looks = (0..150).filter_map(|_| drift.see([0; 4].map(|_| rng.normal())));
        // As if each feature had all of alpha.
        alarms += looks.filter(|look| look.p_value / 4.0 < alpha).count() as u64;
    }
    assert!(!is_at_most(alarms, runs, alpha), "{alarms} of {runs}");
}

#[test]
fn inputs_that_moved_by_two_deviations_are_found_at_the_first_look_and_the_feature_is_named() {
    let mut rng = Stream::new(9, "drift");
    for _ in 0..100 {
        let mut drift = InputDrift::new(config(0.001));
        let mut looks = Vec::new();
        for at in 0..200 {
            let mut features = [0; 4].map(|_| rng.normal());
            features[2] += if at < 150 { 0.0 } else { 2.0 };
            looks.extend(drift.see(features));
        }
        assert_eq!(looks.len(), 2);
        assert!(looks[1].drifted && looks[1].feature == "peak", "{:?}", looks[1]);
        assert!(looks[1].distance > looks[0].distance);
    }
}

#[test]
fn a_window_that_is_not_finite_says_nothing_and_stops_nothing() {
    let mut drift = InputDrift::new(DriftConfig { reference: 2, recent: 2, every: 1, alpha: 0.5 });
    let bad = window_features(&[f32::NAN, 1.0]);
    let looks: Vec<_> = (0..6).filter_map(|_| drift.see(bad)).collect();
    assert_eq!(looks.len(), 2);
    assert!(looks.iter().all(|look| !look.drifted && look.distance.abs() < 1e-12));
}

#[test]
fn features_of_a_window_are_what_numpy_says() {
    // numpy 2, f64 of w[i] = f32(2 frac(i sqrt(2)) - 0.3), i = 1..64: mean, std, max |w - mean| / std, mean |diff| / std.
    let root = 2.0_f64.sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "as in the script")]
    let window: Vec<f32> =
        (1..=64).map(|i| ((f64::from(i) * root).fract() * 2.0 - 0.3) as f32).collect();
    let wanted = [
        0.686_381_548_002_827_9,
        0.569_879_340_915_305_8,
        1.718_136_571_481_06,
        1.702_189_825_096_816,
    ];
    for (found, wanted) in window_features(&window).into_iter().zip(wanted) {
        assert!((found - wanted).abs() < 1e-9, "{found} {wanted}");
    }
    for flat in [window_features(&[3.0; 8]), window_features(&[3.0])] {
        assert_eq!(flat.map(f64::to_bits), [3.0, 0.0, 0.0, 0.0].map(f64::to_bits));
    }
    assert!(window_features(&[]).iter().all(|value| value.is_finite()));
}

#[test]
fn changes_of_confidence_are_found_where_a_script_after_the_paper_finds_them() {
    // The script keeps raw values and takes the bound of theorem 3.1 for each cut, delta = 0.01:
    // [(1088, -0.29137691380724695), (6112, -0.26407103825136613)]
    let root = 2.0_f64.sqrt();
    let value = |i: u32| match i {
        1..=1000 => 0.8 + 0.2 * (f64::from(i) * root).fract(),
        1001..=3000 => 0.5 + 0.2 * (f64::from(i) * root).fract(),
        _ if i.is_multiple_of(3) == (i > 6000) => 0.9,
        _ => 0.1,
    };
    let mut drift = ConfidenceDrift::new(0.01);
    let found: Vec<(u32, f64)> =
        (1..=9000).filter_map(|i| drift.see(value(i)).map(|change| (i, change))).collect();
    let at: Vec<u32> = found.iter().map(|(at, _)| *at).collect();
    assert_eq!(at, [1088, 6112]);
    for ((_, change), wanted) in
        found.iter().zip([-0.291_376_913_807_246_95, -0.264_071_038_251_366_13])
    {
        assert!((change - wanted).abs() < 1e-9, "{change} {wanted}");
    }
    assert!(
        (ConfidenceDrift::cut(0.01, 11.0, 320.0, 64.0) - 0.280_446_515_955_577_8).abs() < 1e-12
    );
}

#[test]
fn confidence_that_did_not_change_alarms_less_often_than_delta_whatever_it_is() {
    let delta = 0.05;
    for kind in 0..3 {
        let mut rng = Stream::new(11, "confidence");
        let (mut alarms, mut looks) = (0, 0);
        for _ in 0..200 {
            let mut drift = ConfidenceDrift::new(delta);
            for _ in 0..3_200 {
                let value = match kind {
                    0 => f64::from(u8::from(rng.unit() < 0.5)), // as wide as can be
                    1 => rng.unit(),
                    _ => 1.0 - rng.unit().powi(8),
                };
                alarms += u64::from(drift.see(value).is_some());
            }
            looks += 100;
        }
        assert!(is_at_most(alarms, looks, delta), "{kind}: {alarms} of {looks}");
    }
}

#[test]
fn a_fall_of_confidence_is_found_soon_and_memory_stays_bounded() {
    let mut rng = Stream::new(12, "confidence");
    for _ in 0..100 {
        let mut drift = ConfidenceDrift::new(0.001);
        for _ in 0..2_500 {
            assert_eq!(drift.see(0.9 + 0.1 * rng.unit()), None);
        }
        assert_eq!(drift.buckets.len(), ConfidenceDrift::BUCKETS);
        let found = (0..300).find_map(|_| drift.see(0.6 + 0.2 * rng.unit()));
        assert!(found.is_some_and(|change| change < -0.2), "{found:?}");
        assert!(drift.buckets.len() < 10, "what was before is forgotten");
    }
}

#[test]
fn values_outside_of_the_range_cannot_lift_the_bound() {
    let mut drift = ConfidenceDrift::new(0.001);
    for at in 0..2_048 {
        let value = [f64::NAN, f64::INFINITY, -4.0, 1e300][at % 4];
        assert_eq!(drift.see(value), None);
    }
    assert!(drift.buckets.iter().all(|sum| (0.0..=32.0).contains(sum)));
}
