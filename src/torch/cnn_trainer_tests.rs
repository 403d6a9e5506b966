use super::*;

const MODEL: CnnConfig = CnnConfig { classes: 10, mean: 0.286, deviation: 0.353 };

pub(in crate::torch) fn config() -> CnnTrainerConfig {
    CnnTrainerConfig { model: MODEL, momentum: 0.9, weight_decay: 0.0, threads: NonZeroU16::MIN }
}

fn learner() -> CnnLearner {
    CnnLearner::new(config(), 1).unwrap()
}

/// A bright bar in noise; its row is its class.
pub(in crate::torch) fn bars(n: usize, seed: u64) -> Images {
    let mut stream = Stream::new(seed, "bars");
    let mut images = Images { width: SIDE, height: SIDE, classes: 10, ..Images::default() };
    for at in 0..n {
        let label = at % 10;
        for y in 0..SIDE {
            for _ in 0..SIDE {
                let bright = if (2 * label + 4..2 * label + 6).contains(&y) { 160 } else { 0 };
                images.pixels.push(bright + u8::try_from(stream.below(60)).unwrap());
            }
        }
        images.labels.push(u8::try_from(label).unwrap());
    }
    images
}

fn job(epochs: u32) -> TrainJob {
    TrainJob {
        epochs: Some(epochs),
        class_logits: true,
        ..TrainJob::plain(learner().initial_adapter(), 1, 8, 0.01, 4)
    }
}

fn train(images: &Images, job: &TrainJob) -> Trained {
    learner().train(&images.clone().into(), job, &mut |_| Control::Continue).unwrap()
}

#[test]
fn it_learns_and_the_predictor_says_what_it_has_learned() {
    let images = bars(60, 1);
    let trained = train(&images, &job(25));
    assert_eq!((trained.num_examples, trained.steps), (60, 25 * 8), "64 would be 8 batches of 8");
    assert!(trained.loss_last < 0.3 * trained.loss_first, "{trained:?}");
    let mut predictor = CnnPredictor::new(MODEL, 1, NonZeroU16::MIN).unwrap();
    let other = bars(40, 2);
    assert!(predictor.accuracy(&other).unwrap() < 0.5);
    predictor.load(&trained.adapter).unwrap();
    let accuracy = predictor.accuracy(&other).unwrap();
    assert!(accuracy > 0.9, "{accuracy}");
    let x: Vec<f32> = other.pixels.iter().map(|pixel| f32::from(*pixel)).collect();
    let answers = predictor.predict(&x, SIDE * SIDE).unwrap();
    let right = answers.iter().zip(&other.labels).filter(|(a, y)| a.class == usize::from(**y));
    let right = u32::try_from(right.count()).unwrap();
    assert!((f64::from(right) / 40.0 - accuracy).abs() < 1e-9);
    assert!(predictor.load(&TensorSet::default()).is_err());
    assert_eq!(predictor.predict(&x, SIDE * SIDE).unwrap(), answers, "the old weights stay");
    assert!(predictor.predict(&x[1..], SIDE * SIDE).is_err());
    assert!(predictor.predict(&[f32::NAN; SIDE * SIDE], SIDE * SIDE).is_err());
}

/// One step against a step written out: v = g, w = w - rate (g + mu (w - start)), then v = 0.9 v + g.
#[test]
fn steps_are_those_of_sgd_with_momentum() {
    let images = bars(8, 1);
    let gradient = |at: &TensorSet| -> Vec<f32> {
        // With a rate of 1 and one step the weights move by the gradient.
        let job = TrainJob { start: at.clone(), learning_rate: 1.0, ..job(1) };
        let after = train(&images, &job).adapter;
        let pairs = at.tensors().iter().zip(after.tensors());
        pairs.flat_map(|(a, b)| a.data.iter().zip(&b.data).map(|(a, b)| a - b)).collect()
    };
    let flat = |set: &TensorSet| -> Vec<f32> {
        set.tensors().iter().flat_map(|tensor| tensor.data.clone()).collect()
    };
    let start = job(1).start;
    let one = train(&images, &job(1)).adapter;
    let two = train(&images, &job(2)).adapter;
    let (g0, g1) = (gradient(&start), gradient(&one));
    let (w0, w1, w2) = (flat(&start), flat(&one), flat(&two));
    for at in (0..w0.len()).step_by(97) {
        assert!((w1[at] - (w0[at] - 0.01 * g0[at])).abs() < 1e-6, "{at}");
        let expected = w1[at] - 0.01 * (0.9 * g0[at] + g1[at]);
        assert!((w2[at] - expected).abs() < 2e-6, "{at}: {} {expected}", w2[at]);
    }
    let config = CnnTrainerConfig { weight_decay: 0.1, ..config() };
    let decayed = CnnLearner::new(config, 1)
        .unwrap()
        .train(&images.into(), &job(1), &mut |_| Control::Continue);
    let decayed = flat(&decayed.unwrap().adapter);
    for at in (0..w0.len()).step_by(97) {
        let expected = w0[at] - 0.01 * (g0[at] + 0.1 * w0[at]);
        assert!((decayed[at] - expected).abs() < 1e-6, "{at}: {} {expected}", decayed[at]);
    }
}

#[test]
fn the_proximal_term_keeps_the_weights_near_their_start() {
    let images = bars(40, 1);
    let moved = |mu| {
        let job = TrainJob { prox_mu: mu, ..job(6) };
        let (trained, start) = (train(&images, &job).adapter, job.start);
        let pairs = trained.tensors().iter().zip(start.tensors());
        let squares =
            pairs.flat_map(|(a, b)| a.data.iter().zip(&b.data).map(|(a, b)| (a - b).powi(2)));
        squares.sum::<f32>().sqrt()
    };
    let (free, held) = (moved(0.0), moved(5.0));
    assert!(held < 0.7 * free, "{held} {free}");
}

#[test]
fn the_same_job_gives_the_same_bits_and_another_seed_does_not() {
    let images = bars(40, 1);
    let first = train(&images, &job(2));
    assert_eq!(first.adapter, train(&images, &job(2)).adapter);
    assert_ne!(first.adapter, train(&images, &TrainJob { seed: 5, ..job(2) }).adapter);
    assert_eq!(first.class_logits.counts, [4; 10]);
    let without = train(&images, &TrainJob { class_logits: false, ..job(2) });
    assert!(without.class_logits.counts.is_empty());
    assert_eq!(without.adapter, first.adapter);
}

#[test]
fn class_targets_pull_the_logits_of_their_class() {
    let images = bars(40, 1);
    let flat = ClassLogits { mean_logits: vec![0.0; 100], counts: vec![30; 10] };
    let free = train(&images, &job(15));
    let pulled = TrainJob { distill_lambda: 5.0, class_targets: Some(flat), ..job(15) };
    let pulled = train(&images, &pulled);
    let spread = |t: &Trained| t.class_logits.mean_logits.iter().copied().fold(0.0, f32::max);
    assert!(spread(&pulled) < 0.7 * spread(&free), "{} {}", spread(&pulled), spread(&free));
}

/// A point for each class but the last, all values the same.
fn points(value: f32) -> Prototypes {
    let counts = (0..10).map(|class| u64::from(class < 9)).collect();
    Prototypes { means: vec![value; 10 * WIDTH], counts }
}

fn lesson(prototypes: Prototypes, prototype_weight: f32) -> Lesson {
    let (windows, targets) = (std::sync::Arc::default(), Vec::new());
    let prototypes = Some(prototypes);
    Lesson { windows, targets, prototypes, prototype_weight, ..Lesson::default() }
}

#[test]
fn prototypes_are_means_of_what_the_last_layer_sees_and_draw_it() {
    let images = bars(40, 1);
    let free = train(&images, &job(15));
    let Prototypes { means, counts } = free.prototypes.clone().unwrap();
    assert_eq!((means.len(), &counts[..]), (10 * WIDTH, &[4; 10][..]));
    // The last layer is affine: of a class's mean embedding it makes the class's mean logits.
    let [weight, bias] = ["fc3.weight", "fc3.bias"].map(|name| free.adapter.get(name).unwrap());
    for (row, said) in means.chunks(WIDTH).zip(free.class_logits.mean_logits.chunks(10)) {
        for ((unit, bias), said) in weight.data.chunks(WIDTH).zip(&bias.data).zip(said) {
            let logit: f32 = unit.iter().zip(row).map(|(w, x)| w * x).sum();
            assert!((logit + bias - said).abs() < 1e-3, "{logit} {bias} {said}");
        }
    }
    let far = |lesson: Lesson| {
        let drawn = train(&images, &TrainJob { lesson: Some(lesson), ..job(15) });
        let rows = drawn.prototypes.unwrap().means;
        let away = |class: usize| -> f32 {
            rows[class * WIDTH..][..WIDTH].iter().map(|x| (x - 0.5).powi(2)).sum()
        };
        (away(0), drawn.adapter)
    };
    let (near, drawn) = far(lesson(points(0.5), 10.0));
    let (none, plain) = far(lesson(points(0.5), 0.0));
    assert!(near < 0.5 * none, "{near} {none}");
    assert_eq!(plain, free.adapter, "a lesson without weight changes nothing");
    let narrow = Prototypes { means: vec![0.5; 10], counts: vec![1; 10] };
    assert_eq!(far(lesson(narrow, 10.0)).1, plain, "points of another width are left out");
    let nobody = Prototypes { counts: vec![0; 10], ..points(0.5) };
    assert_eq!(far(lesson(nobody, 10.0)).1, plain, "nobody has seen these classes");
    assert_ne!(drawn, plain);
}

#[test]
fn jobs_and_images_that_do_not_fit_are_refused() {
    let good = bars(10, 1);
    let kind = |images: &Images, job: &TrainJob| {
        let result = learner().train(&images.clone().into(), job, &mut |_| Control::Continue);
        result.map_or_else(|error| error.kind(), |_| "ok")
    };
    assert_eq!(kind(&good, &job(1)), "ok");
    assert_eq!(kind(&good, &job(0)), "out_of_range");
    assert_eq!(kind(&good, &TrainJob { start: TensorSet::default(), ..job(1) }), "layout_mismatch");
    let soft = ClassLogits { mean_logits: vec![0.0; 4], counts: vec![1; 2] };
    assert_eq!(kind(&good, &TrainJob { class_targets: Some(soft), ..job(1) }), "out_of_range");
    assert_eq!(kind(&Images { width: 14, height: 56, ..good.clone() }, &job(1)), "out_of_range");
    assert_eq!(kind(&Images { classes: 9, ..good.clone() }, &job(1)), "out_of_range");
    assert_eq!(kind(&Images { labels: vec![10; 10], ..good.clone() }, &job(1)), "out_of_range");
    assert_eq!(kind(&Images { labels: vec![0; 9], ..good.clone() }, &job(1)), "out_of_range");
    assert_eq!(kind(&Images { pixels: vec![], labels: vec![], ..good }, &job(1)), "out_of_range");
    let window = crate::learn::Windows { x: vec![0.0], len: 1, labels: vec![0], classes: 10 };
    let mut reference = lesson(points(0.0), 1.0);
    reference.windows = std::sync::Arc::new(window);
    reference.targets = [vec![1.0], vec![0.0; 9]].concat();
    let taught = |lesson| TrainJob { lesson: Some(lesson), ..job(1) };
    assert_eq!(kind(&bars(10, 1), &taught(reference)), "out_of_range", "images aren't windows");
    assert_eq!(kind(&bars(10, 1), &taught(lesson(points(f32::NAN), 1.0))), "not_finite");
    assert_eq!(kind(&bars(10, 1), &taught(lesson(points(0.0), f32::NAN))), "out_of_range");
    let momentum = CnnTrainerConfig { momentum: 1.0, ..config() };
    assert_eq!(CnnLearner::new(momentum, 1).unwrap_err().kind(), "out_of_range");
    let decay = CnnTrainerConfig { weight_decay: -0.1, ..config() };
    assert_eq!(CnnLearner::new(decay, 1).unwrap_err().kind(), "out_of_range");
}
