//! `gaisnet infer`: continues a text in the terminal, with a base and perhaps an adapter.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::Exit;
use super::exit::Misuse;
use super::model::{Found, TrustArgs, find};
use crate::data::Cache;
use crate::ids::{Digest, Name};
use crate::learn::{
    AdapterId, Ask, BatchLimits, Generated, Generator, Sampling, Scheduler, Tokens, Told,
};
use crate::node::SystemClock;
use crate::scada::text::MAX_TOKENS;
use crate::time::{Clock, Mono};
use crate::torch::adopted::{AdoptedBase, digest_of_file};
use crate::torch::generate::LanguageGenerator;
use crate::torch::gguf::{LoadedLanguage, load_gguf};
use crate::torch::language::{LanguageBase, Precision};
use crate::torch::peft_format::{AdapterBase, digest_of, import};
use crate::torch::tokenizer::TextTokenizer;
use crate::torch::weights_error::WeightsError;
use crate::torch::{Card, LoraConfig, PeftConfig, use_threads};

/// Arguments of `gaisnet infer`.
#[derive(Debug, Args)]
pub(super) struct InferArgs {
    /// The text to continue; - takes standard input
    text: String,
    /// Name of a base that comes with gaisnet, a card, or a GGUF file, which is taken as it is
    #[arg(long, value_name = "BASE")]
    model: String,
    /// Folder of an adapter of this base, as Python's peft or `gaisnet adapter` writes it
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Most tokens of the answer, 1 to 4096
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOKENS)))]
    max_tokens: u32,
    /// 0 takes the likeliest token each time; up to 10 draws ever more freely
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw only from the likeliest tokens that have this probability together
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End before this text; may be repeated
    #[arg(long)]
    stop: Vec<String>,
    /// Threads; default: all cores
    #[arg(long)]
    threads: Option<NonZeroU16>,
    /// Numbers that the base is held in; default: bf16 where the processor multiplies it
    #[arg(long)]
    precision: Option<PrecisionName>,
    /// Print the whole answer as JSON at the end instead of its text as it comes
    #[arg(long)]
    json: bool,
}

/// See [`InferArgs`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionName {
    F32,
    Bf16,
}

/// Runs `gaisnet infer`.
///
/// # Errors
/// What is wrong with the base or the text.
pub(super) fn run(args: &InferArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let sampling =
        Sampling::new(args.temperature, args.top_p).map_err(|e| Misuse(e.to_string()))?;
    let text = read_text(&args.text)?;
    let clock = SystemClock::new();
    let Loaded { mut generator, tokens, digest } = load(args)?;
    let ask = Ask {
        prompt: text,
        max_tokens: args.max_tokens,
        sampling,
        seed: args.seed,
        stop: args.stop.clone(),
        stream: !args.json,
        adapter: generator.named().pop().map(AdapterId::Name),
        deadline: Mono(u64::MAX),
    };
    let written = write_answer(&mut generator, &tokens, ask, &clock, out)?;
    if args.json {
        writeln!(out, "{}", written.json(digest))?;
    } else {
        writeln!(out)?;
    }
    Ok(Exit::Ok)
}

/// An answer and its times.
struct Written {
    answer: Generated,
    first_token_ms: f64,
    all_ms: f64,
}

impl Written {
    fn json(&self, adapter_digest: Option<Digest>) -> serde_json::Value {
        let after_first = (self.all_ms - self.first_token_ms) / 1_000.0;
        let rate = (self.answer.tokens > 1 && after_first > 0.0)
            .then(|| f64::from(self.answer.tokens - 1) / after_first);
        json!({
            "text": self.answer.text,
            "finish": self.answer.finish.as_str(),
            "tokens": self.answer.tokens,
            "prompt_tokens": self.answer.prompt_tokens,
            "first_token_ms": self.first_token_ms,
            "tokens_per_second": rate,
            "adapter_digest": adapter_digest,
        })
    }
}

/// Writes the pieces of one answer as they come.
fn write_answer(
    generator: &mut dyn Generator,
    tokens: &dyn Tokens,
    ask: Ask,
    clock: &dyn Clock,
    out: &mut dyn Write,
) -> anyhow::Result<Written> {
    const TICKET: u64 = 0;
    let limits = BatchLimits { running: 1, waiting: 1, named: 0, ..BatchLimits::default() };
    let limits = BatchLimits { answer_bytes: usize::MAX, ..limits };
    let mut scheduler = Scheduler::with_named(limits, generator.named());
    let start = clock.now().micros;
    let since = || millis(clock.now().micros.saturating_sub(start));
    scheduler.ask(TICKET, ask, generator, tokens)?;
    let mut first_token_ms = None;
    loop {
        for (_, told) in scheduler.step(Mono(0), generator, tokens) {
            match told {
                Told::Piece(text, _) => {
                    out.write_all(text.as_bytes())?;
                    out.flush()?;
                }
                Told::End(answer) => {
                    let all_ms = since();
                    let first_token_ms = first_token_ms.unwrap_or(all_ms);
                    return Ok(Written { answer: answer?, first_token_ms, all_ms });
                }
            }
        }
        first_token_ms.get_or_insert_with(since);
    }
}

/// What writes, its alphabet, and the digest of its adapter.
struct Loaded {
    generator: LanguageGenerator,
    tokens: TextTokenizer,
    digest: Option<Digest>,
}

fn load(args: &InferArgs) -> anyhow::Result<Loaded> {
    let threads = args.threads.or_else(all_cores).unwrap_or(NonZeroU16::MIN);
    use_threads(threads);
    let device = tch::Device::Cpu;
    let precision = match args.precision {
        None => Precision::best(device),
        Some(PrecisionName::F32) => Precision::F32,
        Some(PrecisionName::Bf16) => Precision::Bf16,
    };
    let (loaded, weights_digest) = read_base(&args.model, &args.trust)?;
    let LoadedLanguage { config, weights, tokenizer } = loaded;
    let base = LanguageBase::new(config, weights, precision, device)?;
    // No version is loaded; a generator wants to know of what kind it would be.
    let peft = PeftConfig::lora(LoraConfig::default());
    let mut generator = LanguageGenerator::new(base, &peft, threads)?;
    let mut digest = None;
    if let Some(folder) = &args.adapter {
        let of = AdapterBase { name: &args.model, digest: weights_digest, sizes: &config };
        let (peft, adapter) = import(folder, &of).with_context(|| folder.display().to_string())?;
        generator.hold(Name::new("adapter")?, &peft, &adapter)?;
        digest = Some(digest_of(&peft, &adapter)?);
    }
    Ok(Loaded { generator, tokens: tokenizer, digest })
}

/// A base and the digest of its file of weights. A card has to be sealed by a trusted key; a GGUF file stands
/// for itself.
fn read_base(model: &str, trust: &TrustArgs) -> anyhow::Result<(LoadedLanguage, Option<Digest>)> {
    let path = Path::new(model);
    if path.extension().is_some_and(|end| end == "gguf") {
        let loaded = load_gguf(path).with_context(|| model.to_owned())?;
        return Ok((loaded, Some(digest_of_file(path)?.0)));
    }
    let Found { card, seal, path } = find(model)?;
    let path = path.unwrap_or_default();
    let seal = seal.ok_or_else(|| WeightsError::Unsigned { path: path.with_extension("sig") })?;
    trust.read()?.check(&card, &seal)?;
    let Card::Adopted(card) = Card::parse(&card)? else {
        anyhow::bail!("{model} doesn't write text: it takes windows");
    };
    match card.load(&card.place(&path, &Cache::from_env()?.models())?)? {
        AdoptedBase::Language(loaded) => Ok((loaded, card.weights_digest())),
        AdoptedBase::Encoder(_) | AdoptedBase::Vision(_) => {
            anyhow::bail!("{model} doesn't write text: it is an encoder")
        }
    }
}

fn all_cores() -> Option<NonZeroU16> {
    let cores = std::thread::available_parallelism().ok()?;
    u16::try_from(cores.get()).ok().and_then(NonZeroU16::new)
}

#[expect(clippy::cast_precision_loss, reason = "a run is shorter than 2^53 microseconds")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

fn read_text(text: &str) -> anyhow::Result<String> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_TEXT_BYTES).unwrap_or(u64::MAX);
    std::io::stdin().lock().take(most + 1).read_to_end(&mut bytes).context("standard input")?;
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(Misuse(format!("the text has more than {MAX_TEXT_BYTES} bytes")).into());
    }
    String::from_utf8(bytes)
        .map_err(|error| Misuse(format!("the text is not UTF-8: {error}")).into())
}

/// Help of `gaisnet infer`.
pub(super) const HELP: &str = "\
Examples:
  gaisnet model fetch smollm2-135m
  gaisnet infer --model smollm2-135m \"The most common cause of bearing damage is\"
  gaisnet infer --model smollm2.gguf --max-tokens 40 --temperature 0.7 --top-p 0.9 --seed 3 \"Leak at the\"
  gaisnet infer --model smollm2-135m --adapter adapters/pumps \"Leak at the\"
  gaisnet infer --model smollm2.gguf --stop . --json - < prompt.txt

The text comes as it is written. With --json one line at the end: text, finish (stop or length), tokens,
prompt_tokens, first_token_ms, tokens_per_second, and of --adapter its adapter_digest.";

/// Longer than any model's context.
const MAX_TEXT_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::toy_generator::{ToyGenerator, ToyTokens, shift_by};
    use crate::time::Now;

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Now {
            Now::default()
        }
    }

    fn ask(prompt: &str) -> Ask {
        Ask {
            prompt: prompt.into(),
            max_tokens: 6,
            sampling: Sampling::GREEDY,
            seed: 1,
            stop: vec!["fg".into()],
            stream: true,
            adapter: None,
            deadline: Mono(u64::MAX),
        }
    }

    #[test]
    fn the_pieces_are_the_answers_text() {
        let mut toy = ToyGenerator::default();
        toy.load(0, &shift_by(1)).unwrap();
        let mut out = Vec::new();
        let written = write_answer(&mut toy, &ToyTokens, ask("b"), &Still, &mut out).unwrap();
        assert_eq!((out.as_slice(), written.answer.text.as_str()), (&b"cde"[..], "cde"));
        let json = written.json(None);
        assert_eq!((&json["finish"], &json["tokens"]), (&json!("stop"), &json!(5)));
        assert_eq!(json["tokens_per_second"], json!(null), "the clock stood still");
    }

    #[test]
    fn a_prompt_beyond_the_context_is_refused_with_both_lengths() {
        let mut toy = ToyGenerator::with_context(8);
        let mut out = Vec::new();
        let refused = write_answer(&mut toy, &ToyTokens, ask("abcabcabc"), &Still, &mut out);
        let text = refused.err().unwrap().to_string();
        assert!(text.contains("9 tokens") && text.contains('8'), "{text}");
        assert!(out.is_empty());
    }
}
