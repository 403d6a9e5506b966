//! Fine-tuning and generation with SmolLM2 beside Hugging Face's transformers + peft, in one run.
//!
//! ```sh
//! benches/peers/make-venv                        # once; without it only our own side is measured
//! make bench-finetune                            # or: ARGS="--device cuda:0", JSON=out.json
//! ```
//! Both sides read the same work files (`benches/peers/smollm2_peft.py` tells their format): the same
//! tokens, the same start of LoRA's factors, the same optimiser. Each case is a process of its own, for
//! its peak memory, and ours and theirs take turns.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a program for the terminal; JSON values index without panics"
)]
#![expect(clippy::disallowed_methods, reason = "this measures time")]

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use gaisnet::learn::{
    Ask, BatchLimits, Frame, Generator, LearnError, Packed, Sampling, Scheduler, Tensor, TensorSet,
    Tokens, Told,
};
use gaisnet::rng::Stream;
use gaisnet::time::Mono;
use gaisnet::torch::adamw::AdamWConfig;
use gaisnet::torch::generate::LanguageGenerator;
use gaisnet::torch::gguf::load_gguf;
use gaisnet::torch::language::{LanguageBase, Precision};
use gaisnet::torch::language_trainer::{LanguageLearner, LanguageTrainerConfig};
use gaisnet::torch::{LoraConfig, PeftConfig, device_of, use_threads};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

#[derive(Debug, Parser)]
#[command(about = "fine-tuning beside transformers + peft")]
struct Args {
    /// SmolLM2-135M as GGUF
    #[arg(long)]
    gguf: PathBuf,
    /// Work file; may be repeated
    #[arg(long, required = true)]
    work: Vec<PathBuf>,
    /// auto, cpu or cuda:N (then without the peer, which runs on the CPU)
    #[arg(long, default_value = "cpu")]
    device: String,
    #[arg(long, default_value_t = NonZeroU16::new(2).unwrap_or(NonZeroU16::MIN))]
    threads: NonZeroU16,
    /// Python with transformers and peft
    #[arg(long)]
    python: Option<PathBuf>,
    /// Write the figures here as well
    #[arg(long)]
    json: Option<PathBuf>,
    /// One case alone, as JSON: `train` or `generate`, with a precision
    #[arg(long, num_args = 2, value_names = ["KIND", "PRECISION"])]
    case: Option<Vec<String>>,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let (Some(case), Some(work)) = (&args.case, args.work.first()) {
        let [kind, precision] = case.as_slice() else { bail!("--case KIND PRECISION") };
        println!("{}", one_case(&args, kind, precision, &Work::read(work)?)?);
        return Ok(());
    }
    let peer = args.python.as_ref().filter(|python| python.exists() && args.device == "cpu");
    if peer.is_none() {
        eprintln!("note: no venv of the peer (benches/peers/make-venv): only our own side runs");
    }
    let mut rows = Vec::new();
    for (at, work) in args.work.iter().enumerate() {
        for kind in ["train", "generate"] {
            if kind == "generate" && at > 0 {
                continue;
            }
            for (precision, theirs) in [("f32", "f32"), ("bf16", best_of_theirs(kind))] {
                let ours = ours_apart(&args, work, kind, precision)?;
                let theirs = match peer {
                    Some(python) => Some(theirs_apart(&args, python, work, kind, theirs)?),
                    None => None,
                };
                let row = row(kind, &ours, theirs.as_ref());
                println!("{}", line(&row));
                rows.push(row);
            }
        }
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

/// Their quicker bf16 way: with autocast when training, as a bf16 model when generating.
fn best_of_theirs(kind: &str) -> &'static str {
    if kind == "train" { "bf16-autocast" } else { "bf16" }
}

fn ours_apart(args: &Args, work: &Path, kind: &str, precision: &str) -> anyhow::Result<Value> {
    let threads = args.threads.to_string();
    let mut child = Command::new(std::env::current_exe()?);
    child.arg("--gguf").arg(&args.gguf).arg("--work").arg(work);
    child.args(["--device", &args.device, "--threads", &threads, "--case", kind, precision]);
    output(child)
}

fn theirs_apart(
    args: &Args,
    python: &Path,
    work: &Path,
    kind: &str,
    precision: &str,
) -> anyhow::Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/smollm2_peft.py");
    let threads = args.threads.to_string();
    let mut child = Command::new(python);
    child.arg(script).arg(kind).arg("--gguf").arg(&args.gguf).arg("--work").arg(work);
    child.args(["--precision", precision, "--threads", &threads]);
    output(child)
}

fn output(mut child: Command) -> anyhow::Result<Value> {
    let out = child.output().with_context(|| format!("starting {child:?}"))?;
    if !out.status.success() {
        bail!("{child:?} ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    serde_json::from_slice(&out.stdout).context("reading a case's JSON")
}

/// One line of the table as JSON.
fn row(kind: &str, ours: &Value, theirs: Option<&Value>) -> Value {
    let key = if kind == "train" { "seconds_per_step" } else { "tokens_per_second" };
    let number = |of: &Value, key: &str| of.get(key).and_then(Value::as_f64);
    let ratio = |key: &str| {
        let (ours, theirs) = (number(ours, key)?, number(theirs?, key)?);
        Some(ours / theirs)
    };
    json!({
        "name": format!("{kind} {} {}", ours["precision"].as_str().unwrap_or_default(), shape(ours)),
        "unit": key,
        "ours": number(ours, key),
        "reference": theirs.and_then(|t| number(t, key)),
        "ratio": ratio(key),
        "peak_mib": number(ours, "peak_rss_mib"),
        "reference_peak_mib": theirs.and_then(|t| number(t, "peak_rss_mib")),
        "peak_ratio": ratio("peak_rss_mib"),
        "detail": { "ours": ours, "theirs": theirs },
    })
}

fn shape(case: &Value) -> String {
    match (case["batch"].as_u64(), case["length"].as_u64()) {
        (Some(batch), Some(length)) => format!("{batch} x {length}"),
        _ => format!("{} after {}", case["new"], case["prompt"]),
    }
}

fn line(row: &Value) -> String {
    let ours = &row["detail"]["ours"];
    let rate = |key: &str| ours[key].as_f64();
    let served = match (rate("served_tokens_per_second"), rate("four_at_once_tokens_per_second")) {
        (Some(one), Some(four)) => {
            let each = rate("four_adapters_tokens_per_second").unwrap_or(f64::NAN);
            let turns = rate("four_adapters_in_turns_tokens_per_second").unwrap_or(f64::NAN);
            format!(
                "   served {one:.1}, four at once {four:.1}, with an adapter each {each:.1}, in turns {turns:.1}"
            )
        }
        _ => String::new(),
    };
    let number = |key: &str| row[key].as_f64().map_or("-".to_owned(), |x| format!("{x:.3}"));
    format!(
        "{:<24} {:>9} {:>9} {:>7}   peak MiB {:>9} {:>9} {:>6}   {}{served}",
        row["name"].as_str().unwrap_or_default(),
        number("ours"),
        number("reference"),
        number("ratio"),
        number("peak_mib"),
        number("reference_peak_mib"),
        number("peak_ratio"),
        row["unit"].as_str().unwrap_or_default(),
    )
}

/// What both sides read.
struct Work {
    /// `[steps, batch, length]`
    tokens: Vec<u32>,
    steps: usize,
    batch: usize,
    length: usize,
    prompt: Vec<u32>,
    adapter: TensorSet,
    rank: u32,
    alpha: f32,
    learning_rate: f64,
    new_tokens: usize,
}

impl Work {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let (_, head) = SafeTensors::read_metadata(&bytes)?;
        let meta = head.metadata().clone().unwrap_or_default();
        let text =
            |key: &str| meta.get(key).with_context(|| format!("no {key} in {}", path.display()));
        let file = SafeTensors::deserialize(&bytes)?;
        let mut adapter = Vec::new();
        for (name, view) in file.tensors() {
            if name.contains("lora_") && view.dtype() == Dtype::F32 {
                let data = words(view.data()).map(f32::from_le_bytes).collect();
                adapter.push(Tensor { name, shape: view.shape().to_vec(), data });
            }
        }
        let ids = |name: &str| -> anyhow::Result<(Vec<u32>, Vec<usize>)> {
            let view = file.tensor(name)?;
            Ok((words(view.data()).map(u32::from_le_bytes).collect(), view.shape().to_vec()))
        };
        let (tokens, shape) = ids("tokens")?;
        let [steps, batch, length] = shape.as_slice() else { bail!("tokens: {shape:?}") };
        Ok(Self {
            tokens,
            steps: *steps,
            batch: *batch,
            length: *length,
            prompt: ids("prompt")?.0,
            adapter: TensorSet::new(adapter)?,
            rank: text("rank")?.parse()?,
            alpha: text("alpha")?.parse()?,
            learning_rate: text("learning_rate")?.parse()?,
            new_tokens: text("new_tokens")?.parse()?,
        })
    }

    /// A step's rows, each a text of its own whose first token is given.
    fn packed(&self, step: usize) -> Packed {
        let places = self.batch * self.length;
        let tokens = self.tokens.chunks(places).nth(step).unwrap_or_default();
        let mut packed = Packed { length: self.length, ..Packed::default() };
        for row in tokens.chunks(self.length) {
            packed.inputs.extend_from_slice(row);
            packed.targets.extend(row.iter().skip(1).map(|t| Some(*t)).chain([None]));
            packed.segments.extend(row.iter().map(|_| 1));
            packed.positions.extend((0_u32..).take(row.len()));
        }
        packed
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.chunks_exact(4).filter_map(|word| word.try_into().ok())
}

fn one_case(args: &Args, kind: &str, precision: &str, work: &Work) -> anyhow::Result<Value> {
    use_threads(args.threads);
    let device = device_of(&args.device)?;
    let held = if precision == "bf16" { Precision::Bf16 } else { Precision::F32 };
    let loaded = load_gguf(&args.gguf)?;
    let base = LanguageBase::new(loaded.config, loaded.weights, held, device)?;
    let lora = LoraConfig { rank: work.rank, alpha: work.alpha, ..LoraConfig::default() };
    let peft = PeftConfig::lora(lora);
    let mut result = match kind {
        "train" => train(base, peft, args.threads, work)?,
        _ => generate(base, &peft, args.threads, work)?,
    };
    result["precision"] = precision.into();
    result["device"] = args.device.clone().into();
    result["peak_rss_mib"] = peak_mib()?.into();
    Ok(result)
}

fn train(
    base: LanguageBase,
    peft: PeftConfig,
    threads: NonZeroU16,
    work: &Work,
) -> anyhow::Result<Value> {
    let config = LanguageTrainerConfig {
        peft,
        adamw: AdamWConfig { max_gradient_norm: f64::INFINITY, ..AdamWConfig::default() },
        sequence: u32::try_from(work.length)?,
        frame: Frame::separator(0),
        max_memory_mib: None,
        threads,
    };
    let learner = LanguageLearner::new(base, config, 0)?;
    let mut run = learner.run(&work.adapter, work.batch)?;
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for step in 0..work.steps {
        let packed = work.packed(step);
        let began = Instant::now();
        losses.push(run.step(&packed, work.learning_rate, 0.0)?);
        seconds.push(began.elapsed().as_secs_f64());
    }
    let began = Instant::now();
    let after = run.adapter()?;
    anyhow::ensure!(after.num_values() == work.adapter.num_values());
    let extraction = began.elapsed().as_secs_f64();
    let began = Instant::now();
    run.optimiser_step()?;
    let optimiser = began.elapsed().as_secs_f64();
    Ok(json!({
        "batch": work.batch, "length": work.length,
        "seconds_per_step": median(&seconds), "seconds": seconds, "loss": losses,
        "optimiser_seconds": optimiser, "extraction_seconds": extraction,
    }))
}

/// Token after token; as a node serves it, which guesses ahead where the text repeats itself; four requests at
/// once; and four with an adapter each, through the base together and in turns.
fn generate(
    base: LanguageBase,
    peft: &PeftConfig,
    threads: NonZeroU16,
    work: &Work,
) -> anyhow::Result<Value> {
    let mut generator = LanguageGenerator::new(base, peft, threads)?;
    let (mut rates, mut tokens) = (Vec::new(), Vec::new());
    for sequence in 0..4 {
        tokens.clear();
        let began = Instant::now();
        let mut logits = generator.start(sequence, 0, &work.prompt)?;
        while tokens.len() < work.new_tokens {
            let best = best_of(&logits);
            tokens.push(best);
            if tokens.len() < work.new_tokens {
                logits = generator.step(&[(sequence, best)])?.pop().context("no logits")?;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "few tokens")]
        rates.push(work.new_tokens as f64 / began.elapsed().as_secs_f64());
        generator.end(sequence);
    }
    let (mut served, mut together) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        served.push(serve(&mut generator, work, 1, &tokens)?);
        together.push(serve(&mut generator, work, 4, &tokens)?);
    }
    for slot in 1..=FOUR {
        generator.load(slot, &varied(&work.adapter, slot))?;
    }
    let (mut shared, mut in_turns) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (rate, texts) = with_an_adapter_each(&mut generator, work, true)?;
        let (turns, same) = with_an_adapter_each(&mut generator, work, false)?;
        anyhow::ensure!(texts == same, "other texts together than in turns");
        shared.push(rate);
        in_turns.push(turns);
    }
    Ok(json!({
        "prompt": work.prompt.len(), "new": work.new_tokens,
        "tokens_per_second": median(&rates), "served_tokens_per_second": median(&served),
        "four_at_once_tokens_per_second": median(&together), "tokens": tokens,
        "four_adapters_tokens_per_second": median(&shared),
        "four_adapters_in_turns_tokens_per_second": median(&in_turns),
    }))
}

/// Tokens a second of some requests with the same prompt, whose answers have to be `expected`.
fn serve(
    generator: &mut LanguageGenerator,
    work: &Work,
    requests: u64,
    expected: &[u32],
) -> anyhow::Result<f64> {
    let mut scheduler = Scheduler::new(BatchLimits::default());
    for ticket in 0..requests {
        let ask = Ask {
            prompt: Ids.decode(&work.prompt)?,
            max_tokens: u32::try_from(work.new_tokens)?,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop: vec![],
            stream: false,
            adapter: None,
            deadline: Mono(u64::MAX),
        };
        scheduler.ask(ticket, ask, generator, &Ids)?;
    }
    let began = Instant::now();
    while !scheduler.is_idle() {
        for (_, told) in scheduler.step(Mono(0), generator, &Ids) {
            let Told::End(answer) = told else { continue };
            anyhow::ensure!(Ids.encode(&answer?.text)? == expected, "another text was served");
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "few tokens")]
    Ok((requests * work.new_tokens as u64) as f64 / began.elapsed().as_secs_f64())
}

/// Another adapter of the same shapes.
fn varied(adapter: &TensorSet, slot: u32) -> TensorSet {
    let mut adapter = adapter.clone();
    for (name, data) in adapter.named_values_mut() {
        let mut draw = Stream::new(slot.into(), name);
        #[expect(clippy::cast_possible_truncation, reason = "a draw fits an f32")]
        for x in data {
            *x += 0.02 * draw.normal() as f32;
        }
    }
    adapter
}

/// Tokens a second of four sequences after their prompts, each with an adapter of its own; and their texts.
fn with_an_adapter_each(
    generator: &mut LanguageGenerator,
    work: &Work,
    together: bool,
) -> anyhow::Result<(f64, Vec<Vec<u32>>)> {
    let mut last = Vec::new();
    for slot in 1..=FOUR {
        let logits = generator.start(slot.into(), slot, &work.prompt)?;
        last.push((u64::from(slot), best_of(&logits)));
    }
    let mut texts: Vec<Vec<u32>> = last.iter().map(|(_, token)| vec![*token]).collect();
    let began = Instant::now();
    for _ in 1..work.new_tokens {
        let all = if together {
            generator.step(&last)?
        } else {
            let alone = |pair| generator.step(&[pair]);
            last.iter().copied().map(alone).collect::<Result<Vec<_>, _>>()?.concat()
        };
        for (((_, last), text), logits) in last.iter_mut().zip(&mut texts).zip(&all) {
            *last = best_of(logits);
            text.push(*last);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    (1..=FOUR).for_each(|slot| generator.end(slot.into()));
    #[expect(clippy::cast_precision_loss, reason = "few tokens")]
    Ok((texts.iter().map(|text| text.len() - 1).sum::<usize>() as f64 / seconds, texts))
}

/// Adapters, and sequences, at once.
const FOUR: u32 = 4;

/// Texts are token ids with a space behind each.
struct Ids;

impl Tokens for Ids {
    fn encode(&self, text: &str) -> Result<Vec<u32>, LearnError> {
        Ok(text.split_whitespace().filter_map(|id| id.parse().ok()).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, LearnError> {
        let each: Vec<String> = ids.iter().map(ToString::to_string).collect();
        Ok(each.join(" ") + " ")
    }

    fn is_end(&self, _: u32) -> bool {
        false
    }
}

fn best_of(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (id, *logit);
        }
    }
    best.0
}

/// Of all but the first two, which warm up.
fn median(all: &[f64]) -> f64 {
    let mut warm: Vec<f64> = all.iter().copied().skip(2.min(all.len() - 1)).collect();
    warm.sort_by(f64::total_cmp);
    warm.get(warm.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Largest resident memory of this process.
fn peak_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmHWM")).context("no VmHWM")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
