//! The canary story, `gaisnet demo --story rollout`: a good version goes over both sites in stages, a bad one is stopped at
//! its canary and taken back by itself, and an operator has nodes go back. Everything is said over the brokers, by processes
//! that are those of every demo.
//!
//! ```text
//! mod.rs          the plot
//! scene.rs        processes, the operator's commands, waiting with a bound
//! wire.rs         what is heard, and when
//! plan.rs         stages and gates
//! mislabelled.rs  what makes the bad version
//! ending.rs       what the ledgers have of it
//! ```

mod ending;
mod mislabelled;
mod plan;
mod scene;
mod wire;

use serde_json::Value;

use plan::{BUDGET, MODEL, Site};
use scene::{Ask, Scene};
use wire::{Assigned, Wire};

use super::brokers::{Brokers, called};
use super::children::Children;
use super::heard::Counts;
use super::listener::Listener;
use super::plant::{More, PLACES, Place, place_of};
use super::run::{Interrupt, bar, brokers_of, load, prepare, runtime, say, seconds};
use super::{DemoError, DemoOptions, compare, feeder};
use crate::data::bearings::Bearings;
use crate::ids::Version;
use crate::node::SystemClock;
use crate::protocol::rollout::Stage;
use crate::report::{AuditSummary, StoryBad, StoryOrder, StoryReport, StoryStage};
use crate::settings::Tier;
use crate::time::Clock;
use crate::trust::keyring::Keyring;
use crate::wire::Tally;

/// Tells the story; gives what it has shown. Blocks until its end, or until Ctrl-C or SIGTERM.
///
/// # Errors
/// [`DemoError`]. No process of the demo is left then.
pub fn tell(options: &DemoOptions) -> Result<StoryReport, DemoError> {
    let clock = SystemClock::new();
    let keyring = prepare(options)?;
    let data = load(options)?;
    runtime()?.block_on(async {
        let mut interrupt = Interrupt::new()?;
        let began = clock.now();
        let mut children = Children::new(&options.program, &options.folder);
        let brokers = brokers_of(options, &mut children).await;
        let told = match brokers {
            Ok(brokers) => {
                let parts = (&brokers, &keyring, &data);
                play(options, &clock, parts, &mut children, &mut interrupt).await
            }
            Err(error) => Err(error),
        };
        children.stop().await;
        let mut report = told?;
        report.seconds = seconds(clock.now().micros - began.micros);
        ending::read(options, &keyring, &mut report)?;
        Ok(report)
    })
}

async fn play(
    options: &DemoOptions,
    clock: &SystemClock,
    (brokers, keyring, data): (&Brokers, &Keyring, &Bearings),
    children: &mut Children,
    interrupt: &mut Interrupt,
) -> Result<StoryReport, DemoError> {
    for place in &PLACES {
        place.write_settings(options, brokers, &more(place))?;
    }
    let listener = tokio::select! {
        biased;
        () = interrupt.asked() => return Err(DemoError::StoryStopped),
        listener = Listener::start(brokers) => listener?,
    };
    for (site, at) in brokers {
        say(options, &format!("broker of {}: {}:{}", called(site), at.host, at.port));
    }
    let gateways = feeder::start(data, brokers, (options.speed, true), clock.now().wall)?;
    for place in &PLACES {
        children.start_node(place.name, &place.settings_file(options))?;
    }
    let keys = keyring.nodes().map(|entry| entry.key.key_id()).collect();
    let wire = Wire::new(Counts::default().with(keys));
    let bar = bar(options.quiet, 0, "story");
    let mut scene = Scene { options, brokers, clock, children, interrupt, listener, wire, bar };
    let report = Plot { scene: &mut scene, stages: Vec::new() }.tell().await;
    scene.bar.finish_and_clear();
    for gateway in &gateways {
        gateway.abort();
    }
    report
}

/// What a node's settings have for the story: rounds are opened one by one, what is served is assigned, and members are
/// trusted.
fn more(place: &Place) -> More {
    let flag = || "true".to_owned();
    // As by default, what is longer than the usual contribution would be cut, and wrong labels would change little.
    let no_clip = ("strategy.clip_norms", "false".to_owned());
    let keys = match place.tier {
        Tier::Cloud => vec![
            ("round.auto_start", "false".to_owned()),
            ("strategy.schedule", "\"constant\"".to_owned()),
            no_clip,
        ],
        Tier::Edge => vec![
            ("rollout.steward", flag()),
            ("commands.unsigned", "[\"status\", \"rollout.status\"]".to_owned()),
            no_clip,
        ],
        Tier::Device => vec![("rollout.follow", flag())],
    };
    More { keys, labels: place.tier == Tier::Device }
}

/// See the module.
struct Plot<'a, 'b> {
    scene: &'a mut Scene<'b>,
    stages: Vec<StoryStage>,
}

impl Plot<'_, '_> {
    async fn tell(mut self) -> Result<StoryReport, DemoError> {
        let sites = Site::all();
        let devices: Vec<&'static Place> =
            sites.iter().flat_map(|site| site.devices.clone()).collect();
        let north = sites.first().cloned().ok_or_else(|| DemoError::start(&"no site"))?;
        let nobody = || DemoError::start(&"a site without two devices");
        let (canary, witness) =
            (north.canary().ok_or_else(nobody)?, north.shadow().ok_or_else(nobody)?);
        self.all_answer(&devices, 0).await?;

        self.scene.tell("1. The federation learns a first version, and each site takes it.");
        let first = self.learn(&sites).await?;
        self.roll_out(&sites, first, &[Stage::Site]).await?;
        self.all_answer(&devices, first).await?;

        self.scene.tell(
            "2. It learns on, and the next version takes the long way: shadow, canary, site.",
        );
        let good = self.learn(&sites).await?;
        self.roll_out(&sites, good, &STAGES).await?;
        self.all_answer(&devices, good).await?;

        self.scene.tell(
            "3. Somebody exchanges the labels of the devices' recordings, and learning goes on from those.",
        );
        self.mislabel(&devices).await?;
        self.all_answer(&devices, good).await?;
        let bad = self.learn(&sites).await?;

        self.scene.tell("4. What came of it is proposed at a site.");
        let bad = self.try_out(&north, canary, (good, bad)).await?;

        self.scene.tell(
            "5. An operator has one node go back to the first version, and lets it go on again.",
        );
        let one = self.go_back(&[witness], first).await?;
        self.release(witness, good).await?;
        self.scene.tell("6. Then all nodes that serve it.");
        let edges = sites.iter().map(|site| site.edge);
        let everybody: Vec<&'static Place> = devices.iter().copied().chain(edges).collect();
        let all = self.go_back(&everybody, first).await?;
        self.scene.bar.set_message("");

        let options = self.scene.options;
        let wire = &self.scene.wire;
        Ok(StoryReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: compare::commit(),
            model: compare::called(options).to_owned(),
            seconds: 0.0,
            first,
            good,
            stages: self.stages,
            bad,
            orders: vec![
                StoryOrder { target_ms: 5_000, ..one },
                StoryOrder { target_ms: 60_000, ..all },
            ],
            answers: wire.answers,
            answers_without_version: wire.without_version,
            recorded: Vec::new(),
            missing: Vec::new(),
            audit: AuditSummary { entries: 0, verified: false },
        })
    }

    /// Waits until each device gives answers by this version.
    async fn all_answer(
        &mut self,
        devices: &[&'static Place],
        version: Version,
    ) -> Result<(), DemoError> {
        for device in devices {
            let what = format!("answers of {} by version {version}", device.name);
            let answers = |wire: &Wire| {
                let last = wire.last_run(device.name)?;
                (last.version == version && wire.counts.is_online(device.name)).then_some(())
            };
            self.scene.until(&what, &[], answers).await?;
        }
        Ok(())
    }

    /// Has some rounds made, and waits until each edge has what came out.
    async fn learn(&mut self, sites: &[Site]) -> Result<Version, DemoError> {
        let cloud = place_of("cloud").ok_or_else(|| DemoError::start(&"no cloud"))?;
        let up = |wire: &Wire| (wire.counts.num_online() == PLACES.len()).then_some(());
        self.scene.until("all nodes", &[], up).await?;
        for _ in 0..self.scene.options.rounds {
            let next = self.scene.wire.newest + 1;
            // A round that comes to nothing is opened again; while one is open that changes nothing.
            let open = Ask { place: cloud, command: "round.start", every_s: 10 };
            self.scene.ask_once(open)?;
            let out = |wire: &Wire| (wire.newest >= next).then_some(());
            self.scene.until(&format!("version {next}"), &[open], out).await?;
        }
        let version = self.scene.wire.newest;
        for site in sites {
            let what = format!("version {version} at {}", site.edge.name);
            let kept = |wire: &Wire| {
                let status = status_of(wire, site.edge)?;
                let known = status.get("versions")?.as_array()?;
                let is_it = |known: &&Value| known.get("version") == Some(&version.into());
                (known.iter().find(is_it)?.get("kept") == Some(&true.into())).then_some(())
            };
            self.scene.until(&what, &[status(site)], kept).await?;
        }
        let loss = self.scene.wire.counts.loss().unwrap_or(f64::NAN);
        self.scene
            .tell(&format!("  version {version} is at both sites; the devices' loss is {loss:.3}"));
        Ok(version)
    }

    /// Takes a version through all stages at each site.
    async fn roll_out(
        &mut self,
        sites: &[Site],
        version: Version,
        stages: &[Stage],
    ) -> Result<(), DemoError> {
        for site in sites {
            self.begin(site, version, stages).await?;
        }
        for stage in stages {
            for site in sites {
                self.pass(site, version, *stage).await?;
            }
        }
        for site in sites {
            let what = format!("version {version} as the stable one of {}", site.edge.name);
            let stable = |wire: &Wire| {
                let last = wire.last_assigned(site.edge.name)?;
                (last.stable == version && last.candidate.is_none()).then_some(())
            };
            self.scene.until(&what, &[], stable).await?;
        }
        Ok(())
    }

    /// Proposes a plan and begins it.
    async fn begin(
        &mut self,
        site: &Site,
        version: Version,
        stages: &[Stage],
    ) -> Result<(), DemoError> {
        let file =
            self.scene.options.folder.join(format!("plan-{}-{version}.json", site.edge.name));
        let plan = site.plan(version, stages).to_string();
        std::fs::write(&file, plan).map_err(DemoError::file(&file))?;
        let path = file.display().to_string();
        self.order(site, "rollout.plan", &["rollout", "plan", "--file", &path]).await?;
        self.order(site, "rollout.start", &["rollout", "start", "--model", MODEL]).await
    }

    /// Waits until a stage has passed its gate, and promotes it.
    async fn pass(&mut self, site: &Site, version: Version, stage: Stage) -> Result<(), DemoError> {
        let began = self.scene.clock.now().micros;
        let (edge, word) = (site.edge, stage.as_str());
        let seen = loop {
            let what = format!("version {version} through the gate of {word} at {}", edge.name);
            let passed = |wire: &Wire| {
                let status = status_of(wire, edge)?;
                if status.get("version").is_some_and(Value::is_null) {
                    let what =
                        format!("{} has halted version {version} in the stage {word}", edge.name);
                    return Some(Err(DemoError::AnotherWay(what)));
                }
                let here = status.get("stage")? == word && status.get("passed")? == true;
                here.then(|| status.get("seen").cloned().map(Ok)).flatten()
            };
            let seen = self.scene.until(&what, &[status(site)], passed).await??;
            let words = ["rollout", "promote", "--model", MODEL];
            let reply = self.scene.order(edge, "rollout.promote", &words).await?;
            match reply.problem() {
                None => break seen,
                // Its time isn't over: it is asked again.
                Some((kind, _)) if kind == "gate_not_passed" => {}
                Some((_, problem)) => return Err(refused(edge, "rollout.promote", problem)),
            }
        };
        let tally: Tally =
            serde_json::from_value(seen).map_err(|error| DemoError::start(&error))?;
        let ms = self.since(began);
        self.scene.tell(&format!(
            "  {}: version {version} has passed {word} by {}",
            edge.name,
            told(&tally)
        ));
        self.stages.push(row(site, version, stage, &tally, ms));
        Ok(())
    }

    /// The devices' data sets are exchanged for one whose labels are wrong.
    async fn mislabel(&mut self, devices: &[&'static Place]) -> Result<(), DemoError> {
        let options = self.scene.options;
        let cache = mislabelled::copy(options)?;
        for device in devices {
            let mut more = more(device);
            more.keys.push(("data.cache", super::plant::quoted(&cache.display().to_string())));
            device.write_settings(options, self.scene.brokers, &more)?;
            self.scene.tell(&format!("  {} starts again with {}", device.name, cache.display()));
            self.scene.wire.counts.leaves(device.name);
            self.scene.children.restart_node(device.name).await?;
        }
        Ok(())
    }

    /// Proposes the bad version at a site, as the good one was, and waits for what its canary makes of it.
    async fn try_out(
        &mut self,
        site: &Site,
        canary: &'static Place,
        (good, bad): (Version, Version),
    ) -> Result<StoryBad, DemoError> {
        self.begin(site, bad, &STAGES).await?;
        self.pass(site, bad, Stage::Shadow).await?;
        let edge = site.edge;
        let at_canary = |wire: &Wire| {
            let last = wire.last_assigned(edge.name)?;
            let serves =
                |told: &&Assigned| told.serve.iter().any(|node| node.as_str() == canary.name);
            Some(last).filter(|told| told.candidate == Some(bad)).filter(serves).cloned()
        };
        let what = format!("{} as the canary of version {bad}", canary.name);
        let entered = self.scene.until(&what, &[], at_canary).await?;
        let halted = |wire: &Wire| {
            if let Some(told) = wire.assigned_after(edge.name, entered.serial) {
                return Some(Ok(told.clone()));
            }
            let passed = status_of(wire, edge)?.get("passed") == Some(&true.into());
            passed
                .then(|| Err(DemoError::AnotherWay(format!("version {bad} has passed its canary"))))
        };
        let what = format!("the halt of version {bad} by the gate of its canary");
        let halt = self.scene.until(&what, &[status(site)], halted).await??;
        if halt.candidate.is_some() {
            return Err(DemoError::AnotherWay(format!("version {bad} went on from its canary")));
        }
        let seen = self.scene.wire.seen_by(canary.name, entered.serial);
        let back = |wire: &Wire| {
            let last = wire.last_run(canary.name)?;
            (last.version == good && last.from > entered.at && last.answers >= SURE).then_some(last)
        };
        let what = format!("{} back at version {good}", canary.name);
        let back = self.scene.until(&what, &[], back).await?;
        let wire = &self.scene.wire;
        let told = StoryBad {
            version: bad,
            canary: canary.name.to_owned(),
            halted_at: String::new(),
            rule: String::new(),
            answers: seen.answers,
            judged: seen.judged,
            wrong: seen.wrong,
            base_judged: seen.base_judged,
            base_wrong: seen.base_wrong,
            budget: BUDGET,
            answers_on_the_wire: wire.answers_by(canary.name, bad),
            answered_by: wire.who_answered_by(bad).into_iter().map(str::to_owned).collect(),
            halted_after_ms: ms(halt.at.saturating_sub(entered.at)),
            back_after_ms: ms(back.from.saturating_sub(halt.at)),
        };
        self.scene.tell(&format!(
            "  {} has halted version {bad} by {}; {} was back {:.0} ms later",
            edge.name,
            self::told(&seen),
            canary.name,
            told.back_after_ms,
        ));
        Ok(told)
    }

    /// Orders a rollback at each of these nodes, all at once; gives how long the slowest took. What isn't driven by tags
    /// gives no answer to wait for.
    async fn go_back(
        &mut self,
        nodes: &[&'static Place],
        to: Version,
    ) -> Result<StoryOrder, DemoError> {
        let json = format!("{{\"args\":{{\"model\":\"{MODEL}\",\"version\":{to}}}}}");
        let mut signed = Vec::new();
        for node in nodes {
            signed.push(
                self.scene
                    .sign(node, "rollback", &["cmd", "sign", "rollback", "--json", &json])
                    .await?,
            );
        }
        let mut given = Vec::new();
        for (node, signed) in nodes.iter().zip(signed) {
            given.push((*node, self.scene.give(signed)?));
        }
        let (mut reply_us, mut answer_us) = (0, 0);
        for (node, at) in given {
            let reply = self.scene.reply_of(node, "rollback").await?;
            if let Some((_, problem)) = reply.problem() {
                return Err(refused(node, "rollback", problem));
            }
            reply_us = reply_us.max(reply.at.saturating_sub(at));
            if node.tier == Tier::Device {
                let what = format!("the first answer of {} by version {to}", node.name);
                let back = |wire: &Wire| wire.last_run(node.name).filter(|run| run.version == to);
                let run = self.scene.until(&what, &[], back).await?;
                answer_us = answer_us.max(run.from.saturating_sub(at));
            }
        }
        let (reply_ms, answer_ms) = (ms(reply_us), ms(answer_us));
        self.scene.tell(&format!(
            "  replies after {reply_ms:.0} ms, answers by version {to} after {answer_ms:.0} ms"
        ));
        let nodes = nodes.iter().map(|node| node.name.to_owned()).collect();
        Ok(StoryOrder { nodes, reply_ms, answer_ms, target_ms: 0 })
    }

    async fn release(&mut self, node: &'static Place, version: Version) -> Result<(), DemoError> {
        let json = format!("{{\"args\":{{\"model\":\"{MODEL}\",\"version\":{version}}}}}");
        let command = "version.release";
        let reply =
            self.scene.order(node, command, &["cmd", "sign", command, "--json", &json]).await?;
        if let Some((_, problem)) = reply.problem() {
            return Err(refused(node, command, problem));
        }
        self.all_answer(&[node], version).await
    }

    async fn order(&mut self, site: &Site, command: &str, words: &[&str]) -> Result<(), DemoError> {
        let reply = self.scene.order(site.edge, command, words).await?;
        match reply.problem() {
            None => Ok(()),
            Some((_, problem)) => Err(refused(site.edge, command, problem)),
        }
    }

    fn since(&self, began: u64) -> f64 {
        ms(self.scene.clock.now().micros.saturating_sub(began))
    }
}

fn status(site: &Site) -> Ask {
    Ask { place: site.edge, command: "rollout.status", every_s: 1 }
}

/// What an edge has said of its rollout.
fn status_of<'a>(wire: &'a Wire, edge: &'static Place) -> Option<&'a Value> {
    wire.reply(edge.name, "rollout.status")?.said.get("data")?.get("rollout")
}

fn refused(node: &Place, command: &str, problem: String) -> DemoError {
    DemoError::Refused { node: node.name.to_owned(), command: command.to_owned(), problem }
}

fn row(site: &Site, version: Version, stage: Stage, seen: &Tally, ms: f64) -> StoryStage {
    StoryStage {
        site: site.edge.site.to_owned(),
        version,
        stage: stage.as_str().to_owned(),
        answers: seen.answers,
        errors: seen.errors,
        judged: seen.judged,
        wrong: seen.wrong,
        base_judged: seen.base_judged,
        base_wrong: seen.base_wrong,
        ms,
    }
}

/// What was seen, in words.
fn told(seen: &Tally) -> String {
    let Tally { answers, judged, wrong, base_judged, base_wrong, .. } = seen;
    format!(
        "{answers} answers: {wrong} of {judged} with a label wrong, {base_wrong} of {base_judged} of the version before"
    )
}

#[expect(clippy::cast_precision_loss, reason = "a figure to show")]
fn ms(micros: u64) -> f64 {
    micros as f64 / 1e3
}

const STAGES: [Stage; 3] = [Stage::Shadow, Stage::Canary, Stage::Site];
/// Answers after which a node counts as back.
const SURE: u64 = 8;
