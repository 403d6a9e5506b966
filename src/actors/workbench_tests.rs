use super::super::busy::{Busy, Hold};
use super::super::lanes::train_lane;
use super::*;
use crate::learn::{BEARING_PHYSICS, LearnError, Progress, Texts, Windows};
use crate::protocol::fixture::{first_adapter, knowledge_plan, plan};
use crate::protocol::{Distils, Said};
use crate::time::{Clock, Now};
use crate::wire::SpectraPlan;

fn task(plan: Plan) -> TrainTask {
    TrainTask {
        offer: Digest([1; 32]),
        round: 1,
        epoch: 1,
        adapter: Digest([2; 32]),
        plan,
        class_targets: None,
        residual: None,
        knowledge: None,
    }
}

fn start() -> TensorSet {
    update::unpack(&first_adapter(4)).unwrap()
}

/// What a model says whose class means are these, each of so many examples.
fn trained(mean_logits: &[f32], counts: &[u64]) -> Trained {
    Trained {
        class_logits: ClassLogits { mean_logits: mean_logits.to_vec(), counts: counts.to_vec() },
        num_examples: counts.iter().sum(),
        ..Trained::of(start(), 0, &[1.0, 0.9, 0.7, 0.5])
    }
}

#[test]
fn a_model_that_is_sure_sends_class_means_that_its_owner_takes() {
    let sure = trained(&[40.0, -3.0, -90.0, 25.0], &[30, 30]);
    assert_eq!(sure.class_logits.check_plausible(60), Err("one_hot_cell"), "as it is");
    let plan = Plan { class_logits: true, ..plan(Coding::F32) };
    let work = work_of(&task(plan), &start(), &Windows::default().into(), sure, None).unwrap();
    let said = ClassLogits::from(&work.class_logits.unwrap());
    assert_eq!(said.mean_logits, [10.0, -3.0, -10.0, 10.0]);
    assert_eq!(said.check_plausible(60), Ok(()));
}

#[test]
fn a_pass_over_the_examples_is_asked_for_where_somebody_hears_of_it() {
    let me = NodeId::new("d").unwrap();
    let asks =
        |plan: Plan| job_of(&task(plan), &first_adapter(4), None, None, &me).unwrap().class_logits;
    assert!(!asks(plan(Coding::F32)));
    assert!(asks(Plan { class_logits: true, ..plan(Coding::F32) }));
    let mut about_prototypes = knowledge_plan(3);
    if let Some(knowledge) = &mut about_prototypes.knowledge {
        (knowledge.reference, knowledge.reference_logits) = (None, false);
    }
    assert!(asks(about_prototypes.clone()), "they come from that pass, in the first round, too");
    let how = Distils { steps: 3, learning_rate: 0.1, final_rate: Some(0.0) };
    let distil = DistilTask {
        offer: Digest([1; 32]),
        adapter: Digest([2; 32]),
        plan: Plan { class_logits: true, ..about_prototypes },
        class_targets: None,
        knowledge: None,
        offered: None,
        how,
    };
    let job = distil_job_of(&distil, &first_adapter(4), None, None, &me).unwrap();
    assert!(!job.class_logits, "an owner's model has no examples");
    assert_eq!((job.steps, job.learning_rate, job.final_rate), (3, 0.1, Some(0.0)));
}

/// Rounds in which spectra travel, of two bands and three classes.
fn about_spectra(set: &ReferenceSet) -> Plan {
    let mut plan = knowledge_plan(set.count());
    let knowledge = plan.knowledge.as_mut().unwrap();
    (knowledge.prototypes, knowledge.reference_logits) = (false, false);
    knowledge.reference.as_mut().unwrap().digest = set.digest;
    knowledge.spectra = Some(SpectraPlan { bands: 2, grades: 1 });
    plan
}

#[test]
fn a_device_says_how_classes_sound_of_which_it_has_enough_windows_and_of_no_texts() {
    let set = ReferenceSet::make(BEARING_PHYSICS, 1, 12).unwrap();
    let plan = about_spectra(&set);
    // Slow, slow, ... and one quick window of class 1, of which the plan wants five.
    let window = |quick: bool| (0_u8..8).map(move |t| f32::from(if quick { t % 2 } else { t / 4 }));
    let quick = [false, false, false, false, false, true];
    let labels = quick.iter().map(|quick| usize::from(*quick)).collect();
    let x = quick.into_iter().flat_map(window).collect();
    let data = Examples::from(Windows { x, len: 8, labels, classes: 3 });
    let says = |data: &Examples| {
        let trained = trained(&[0.0; 9], &[5, 1, 0]);
        work_of(&task(plan.clone()), &start(), data, trained, None)
    };
    let packed = says(&data).unwrap().knowledge.unwrap();
    assert_eq!(packed.counts, [5, 0, 0], "nothing about a single window");
    let knowledge = plan.knowledge.as_ref().unwrap();
    let said = knowledge::unpack(knowledge, &packed.bytes, &packed.counts).unwrap();
    let spectra = said.spectra.unwrap();
    assert!(spectra.means[0] > 0.2 && spectra.means[1] < -0.5, "{spectra:?}");
    assert_eq!(spectra.means[2..], [0.0; 4]);
    assert_eq!(says(&Texts::default().into()).unwrap_err(), "out_of_range");
}

#[test]
fn an_owner_learns_inputs_that_sound_as_its_members_and_the_tier_above_say() {
    let set = ReferenceSet::make(BEARING_PHYSICS, 1, 12).unwrap();
    let plan = about_spectra(&set);
    let packed = |counts: [u64; 3]| {
        let means = counts.map(|n| if n > 0 { [1.0, -1.0] } else { [0.0; 2] }).concat();
        let spectra = Some(Prototypes { means, counts: counts.to_vec() });
        knowledge::pack(&plan, &Knowing { spectra, ..Knowing::default() }).unwrap().unwrap()
    };
    let (merged, above) = (packed([30, 0, 30]), packed([0, 40, 0]));
    let said = |packed: &knowledge::PackedKnowledge| Said {
        set: Digest::of(&packed.bytes),
        counts: packed.counts.clone(),
        reference: Some(set.digest),
    };
    let task = DistilTask {
        offer: Digest([1; 32]),
        adapter: Digest([2; 32]),
        plan: plan.clone(),
        class_targets: None,
        knowledge: Some(merged),
        offered: Some(said(&above)),
        how: Distils { steps: 3, learning_rate: 0.1, final_rate: None },
    };
    let me = NodeId::new("e").unwrap();
    let windows = |above: Option<&[u8]>| {
        let job = distil_job_of(&task, &first_adapter(4), above, Some(&set), &me);
        job.map(|job| job.lesson.unwrap().windows)
    };
    assert_eq!(windows(None).unwrap(), set.windows, "of one class nobody has said anything");
    assert_ne!(windows(Some(&above.bytes)).unwrap(), set.windows);
    assert_eq!(windows(Some(&[1, 2, 3])).map(drop), Err("bad_compression"));
}

/// A clock that stands.
struct Still;

impl Clock for Still {
    fn now(&self) -> Now {
        Now::default()
    }
}

/// Says that it has begun.
struct Begins(std::sync::mpsc::Sender<()>);

impl Learner for Begins {
    fn initial_adapter(&self) -> TensorSet {
        start()
    }

    fn train(
        &mut self,
        _: &Examples,
        _: &TrainJob,
        _: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        self.0.send(()).unwrap();
        Ok(trained(&[0.0; 4], &[30, 30]))
    }
}

#[test]
fn a_job_that_something_holds_waits_on_its_lane_and_not_at_whoever_brings_it() {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    let open = Arc::new(AtomicBool::new(false));
    let ((asks, asked), (begins, begun), (ends, ended)) = (channel(), channel(), channel());
    let is_open = Arc::clone(&open);
    let busy = Arc::new(Busy::with_hours(Some(Box::new(move || {
        let _ = asks.send(std::thread::current().name().map(str::to_owned));
        is_open.load(Ordering::SeqCst)
    }))));
    let lane = train_lane(Begins(begins), 1).unwrap();
    let data = Arc::new(crate::learn::Texts::default().into());
    let pace = Pace::new(Arc::clone(&busy), Arc::new(Still), 100);
    let me = NodeId::new("d").unwrap();
    let bench = LaneBench::new(me, Some((lane, data)), Arc::default(), Arc::new(pace));
    let done: Done = Box::new(move |end| ends.send(end.is_ok()).unwrap());
    bench.submit(|| Ok(TrainJob::plain(start(), 1, 1, 0.1, 1)), done, |_| Input::Start);
    // Brought, and the lane is at the door.
    assert_eq!(asked.recv().unwrap().as_deref(), Some("gaisnet-train"));
    assert!(begun.try_recv().is_err());
    open.store(true, Ordering::SeqCst);
    busy.set(Hold::Machine, true);
    busy.set(Hold::Machine, false); // wakes it up
    assert!(begun.recv().is_ok() && ended.recv().unwrap());
}
