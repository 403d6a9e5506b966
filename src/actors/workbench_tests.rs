use super::super::busy::{Busy, Hold};
use super::super::lanes::train_lane;
use super::*;
use crate::learn::{LearnError, Progress};
use crate::protocol::Distils;
use crate::protocol::fixture::{first_adapter, knowledge_plan, plan};
use crate::time::{Clock, Now};

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
        adapter: start(),
        class_logits: ClassLogits { mean_logits: mean_logits.to_vec(), counts: counts.to_vec() },
        reference_logits: Vec::new(),
        top_logits: None,
        prototypes: None,
        head: None,
        num_examples: counts.iter().sum(),
        steps: 4,
        loss_first: 1.0,
        loss_last: 0.5,
        risk: None,
    }
}

#[test]
fn a_model_that_is_sure_sends_class_means_that_its_owner_takes() {
    let sure = trained(&[40.0, -3.0, -90.0, 25.0], &[30, 30]);
    assert_eq!(sure.class_logits.check_plausible(60), Err("one_hot_cell"), "as it is");
    let plan = Plan { class_logits: true, ..plan(Coding::F32) };
    let work = work_of(&task(plan), &start(), sure, None).unwrap();
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
    let how = Distils { steps: 3, learning_rate: 0.1 };
    let distil = DistilTask {
        offer: Digest([1; 32]),
        adapter: Digest([2; 32]),
        plan: Plan { class_logits: true, ..about_prototypes },
        class_targets: None,
        knowledge: None,
        how,
    };
    let job = distil_job_of(&distil, &first_adapter(4), None, &me).unwrap();
    assert!(!job.class_logits, "an owner's model has no examples");
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
    bench.submit(Ok(TrainJob::plain(start(), 1, 1, 0.1, 1)), done, |_| Input::Start);
    // Brought, and the lane is at the door.
    assert_eq!(asked.recv().unwrap().as_deref(), Some("gaisnet-train"));
    assert!(begun.try_recv().is_err());
    open.store(true, Ordering::SeqCst);
    busy.set(Hold::Machine, true);
    busy.set(Hold::Machine, false); // wakes it up
    assert!(begun.recv().is_ok() && ended.recv().unwrap());
}
