//! The generator's arithmetic against PyTorch's and against differences, what it makes, and what isn't one.

use super::*;
use crate::learn::Prototypes;

/// The layer of the reference: the third class is unknown.
fn small_layer() -> Vec<(usize, Vec<f64>)> {
    vec![(0, vec![1.0, -0.5, 0.25]), (1, vec![-1.0, 0.75, -0.25])]
}

fn small() -> LatentGenerator {
    let fill =
        |n: u8, from: u8| (from..from + n).map(|i| (f64::from(i) * 1.3 + 0.2).sin()).collect();
    LatentGenerator {
        parts: [fill(15, 0), fill(3, 20), fill(6, 30), fill(2, 40)],
        noise: 2,
        counts: vec![30, 30, 0],
    }
}

const NOISES: [f64; 8] = [0.5, -1.0, 1.5, 0.25, -0.75, 0.5, 0.1, 2.0];
const LABELS: [usize; 4] = [0, 1, 1, 0];

fn near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-10)
}

/// Worked out by PyTorch 2.13 in f64: `cross_entropy` over the known classes plus
/// `exp(mean(-(squared distance of noises) * (absolute distance of latents)))` of pairs of one class, plus 10 times the
/// mean of `mean ** 2 + (var - 1) ** 2`; its `backward()`, and two steps of `torch.optim.Adam(lr=5e-3)`.
#[test]
fn objective_gradient_and_adam_are_those_of_pytorch() {
    let mut generator = small();
    let value = generator.value(&small_layer(), &NOISES, &LABELS);
    assert!(near(&[value.objective], &[29.892_195_901_639_557]));
    let expected: [&[f64]; 4] = [
        &[
            8.315_611_053_679,
            17.313_357_787_934,
            13.464_605_064_448,
            11.009_218_469_603,
            0.0,
            2.814_543_864_092,
            2.819_050_088_944,
            3.106_546_896_320,
            1.337_836_965_631,
            0.0,
            -0.792_398_598_981,
            -15.847_971_979_617,
            -7.923_985_989_809,
            0.0,
            0.0,
        ],
        &[24.473_823_534_051, 4.444_383_861_950, -7.923_985_989_809],
        &[
            31.044_779_827_898,
            25.139_881_849_135,
            10.191_724_367_731,
            -6.334_034_797_040,
            -5.453_337_804_443,
            -2.260_401_804_957,
        ],
        &[21.860_051_324_254, -3.453_982_794_403],
    ];
    for (part, expected) in value.gradient.iter().zip(expected) {
        assert!(near(part, expected), "{part:?}");
    }
    let mut adam = Adam::new(&generator.parts);
    adam.step(&mut generator.parts, &value.gradient);
    let value = generator.value(&small_layer(), &NOISES, &LABELS);
    adam.step(&mut generator.parts, &value.gradient);
    assert!(near(&generator.parts[1], &[0.865_885_561_934, 0.689_248_382_931, -0.491_798_693_142]));
    assert!(near(&generator.parts[3], &[0.924_581_991_232, -0.082_806_527_250]));
    assert!(near(
        &generator.parts[0][..3],
        &[0.188_673_578_614, 0.987_510_748_990, 0.324_996_076_839]
    ));
}

#[test]
fn the_gradient_is_that_of_differences() {
    let mut stream = Stream::new(5, "differences");
    let head = ClassHead {
        moments: vec![0.0; 6],
        rows: Prototypes { means: vec![0.0; 12], counts: vec![9; 3] },
    };
    let row = |stream: &mut Stream| (0..4).map(|_| stream.normal()).collect();
    let layer: Vec<(usize, Vec<f64>)> = (0..3).map(|class| (class, row(&mut stream))).collect();
    let generator = LatentGenerator::new(4, 5, &head, &mut stream);
    let noise: Vec<f64> = (0..24).map(|_| stream.normal()).collect();
    let labels = [0, 1, 2, 2, 1, 0];
    let objective =
        |generator: &LatentGenerator| generator.value(&layer, &noise, &labels).objective;
    let gradient = generator.value(&layer, &noise, &labels).gradient;
    for (part, slopes) in gradient.iter().enumerate() {
        for (at, slope) in slopes.iter().enumerate() {
            let moved = |by: f64| {
                let mut generator = generator.clone();
                generator.parts[part][at] += by;
                objective(&generator)
            };
            let wanted = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((slope - wanted).abs() < 1e-6, "part {part}, value {at}: {slope} {wanted}");
        }
    }
}

/// Three classes in four dimensions, each in a direction of its own.
fn head() -> ClassHead {
    let row = |class: usize| (0..5).map(move |at| if at == class { 2.0 } else { -0.5 });
    let rows = Prototypes { means: (0..3).flat_map(row).collect(), counts: vec![40, 20, 30] };
    // A layer that is no surer where embeddings lie than elsewhere.
    ClassHead { rows, moments: [[5.0; 4], [2.0; 4]].concat() }
}

fn right(head: &ClassHead, latents: &Latents) -> usize {
    let says = |x: &[f32], row: &[f32]| {
        x.iter().zip(row).map(|(x, w)| x * w).sum::<f32>() + row.last().unwrap()
    };
    let rows = latents.x.chunks(head.width()).zip(&latents.labels);
    let top = |x: &[f32]| {
        let known = (0..3).filter_map(|c| Some((c, says(x, head.rows.row(c)?))));
        known.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
    };
    rows.filter(|(x, label)| top(x) == **label).count()
}

#[test]
fn its_latents_are_of_their_class_and_differ_and_untrained_they_are_of_any() {
    let trained = LatentGenerator::train(&head(), 7).unwrap();
    let mut stream = Stream::new(1, "latents");
    let latents = trained.latents(120, &mut stream);
    assert_eq!((latents.x.len(), latents.labels.len()), (480, 120));
    let hits = right(&head(), &latents);
    assert!(hits >= 117, "{hits} of 120");
    for class in 0..3 {
        let rows = latents.x.chunks(4).zip(&latents.labels).filter(|(_, label)| **label == class);
        let firsts: Vec<f32> = rows.map(|(row, _)| row[0]).collect();
        assert!(firsts.len() > 20, "classes are drawn evenly, whatever the counts");
        let mean = firsts.iter().sum::<f32>() / f32::from(u16::try_from(firsts.len()).unwrap());
        assert!((0.0..10.0).contains(&mean), "where embeddings lie: {mean}");
        assert!(
            firsts.iter().any(|x| (x - mean).abs() > 0.1),
            "one and the same latent: {firsts:?}"
        );
    }
    let untrained = LatentGenerator::new(NOISE, HIDDEN, &head(), &mut stream);
    assert!(right(&head(), &untrained.latents(120, &mut stream)) < 90);
}

#[test]
fn the_same_layer_and_seed_give_the_same_bits() {
    let one = LatentGenerator::train(&head(), 7).unwrap();
    assert_eq!(LatentGenerator::train(&head(), 7).unwrap(), one);
    assert_ne!(LatentGenerator::train(&head(), 8).unwrap(), one);
}

#[test]
fn a_class_that_nobody_knows_is_not_made_and_one_alone_is_nothing_to_tell_apart() {
    let mut two = head();
    two.rows.counts[1] = 0;
    let generator = LatentGenerator::train(&two, 7).unwrap();
    let latents = generator.latents(60, &mut Stream::new(1, "latents"));
    assert!(latents.labels.len() == 60 && !latents.labels.contains(&1));
    assert!(right(&two, &latents) >= 58);
    for counts in [vec![0, 9, 0], vec![0; 3]] {
        let mut one = head();
        one.rows.counts = counts;
        let generator = LatentGenerator::train(&one, 7).unwrap();
        assert!(!generator.tells_apart());
    }
    let mut broken = head();
    broken.rows.means[3] = f32::NAN;
    assert_eq!(LatentGenerator::train(&broken, 7).unwrap_err().kind(), "not_finite");
}

fn set(change: impl Fn(&mut Tensor)) -> TensorSet {
    let mut tensors = small().to_tensors();
    tensors.iter_mut().for_each(&change);
    TensorSet::new(tensors).unwrap()
}

#[test]
fn it_travels_and_what_is_no_generator_is_refused() {
    let read = |set: &TensorSet, counts: &[u64]| LatentGenerator::from_tensors(set, counts);
    let good = read(&set(|_| {}), &[30, 30, 0]).unwrap().unwrap();
    assert_eq!((good.width(), good.classes(), good.noise), (2, 3, 2));
    let pairs = good.parts.iter().flatten().zip(small().parts.into_iter().flatten());
    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6));
    assert_eq!(read(&TensorSet::default(), &[30, 30, 0]), Ok(None), "another thing");
    let kind = |set: &TensorSet, counts: &[u64]| read(set, counts).unwrap_err().kind();
    let whole = set(|_| {});
    assert_eq!(kind(&whole, &[30; 5]), "layout_mismatch", "no input is left for noise");
    let of = |name: &'static str, change: fn(&mut Tensor)| {
        set(move |tensor| {
            if tensor.name == name {
                change(tensor);
            }
        })
    };
    let less = |tensor: &mut Tensor| {
        tensor.shape[0] -= 1;
        tensor.data.truncate(tensor.shape.iter().product());
    };
    for name in NAMES {
        assert_eq!(kind(&of(name, less), &[30, 30, 0]), "layout_mismatch", "{name}");
        let renamed = of(name, |tensor| tensor.name.push('x'));
        assert_eq!(kind(&renamed, &[30, 30, 0]), "layout_mismatch", "{name}");
        let broken = of(name, |tensor| tensor.data[0] = f32::NAN);
        assert_eq!(kind(&broken, &[30, 30, 0]), "not_finite", "{name}");
        let huge = of(name, |tensor| tensor.data[0] = -1001.0);
        assert_eq!(kind(&huge, &[30, 30, 0]), "out_of_range", "{name}");
    }
}

#[test]
fn no_latent_goes_beyond_what_an_embedding_may_be() {
    let loud = set(|tensor| tensor.data.fill(GENERATOR_BOUND));
    let loud = LatentGenerator::from_tensors(&loud, &[30, 30, 0]).unwrap().unwrap();
    let latents = loud.latents(40, &mut Stream::new(1, "latents"));
    assert!(latents.x.iter().all(|x| x.abs() <= EMBEDDING_BOUND));
    assert!(latents.x.contains(&EMBEDDING_BOUND));
}
