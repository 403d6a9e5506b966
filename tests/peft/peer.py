"""The other side of tests/peft_format.rs: Hugging Face transformers and peft.

    peer.py make FOLDER        a tiny random Llama, adapters of each kind on it, what both answer
    peer.py read BASE FOLDER   loads each adapter in FOLDER's folders and writes what it answers

FOLDER gets base/, a folder for each adapter, and expected.json: {"ids": .., "logits": {name: ..}}.
"""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers
from tokenizers import Tokenizer, models

IDS = [[1, 17, 5, 60, 33, 2, 9], [44, 3, 3, 21, 58, 12, 30]]
SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
)
CAUSAL = dict(task_type="CAUSAL_LM")
ADAPTERS = {
    "lora": peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "down_proj", "lm_head"],
        rank_pattern={"layers.1.self_attn.q_proj": 3, "q_proj": 2},
        alpha_pattern={"v_proj": 10},
        lora_dropout=0.1,
        **CAUSAL,
    ),
    "rslora": peft.LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=["k_proj", "gate_proj"], layers_to_transform=[1], **CAUSAL
    ),
    "lora_all": peft.LoraConfig(r=2, target_modules="all-linear", **CAUSAL),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL
    ),
    "ia3_inputs": peft.IA3Config(
        target_modules=["q_proj", "up_proj", "o_proj"], feedforward_modules=["q_proj", "up_proj"], **CAUSAL
    ),
    "prompts": peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=4, **CAUSAL),
}


def answers(model):
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor(IDS)).logits
    logits = logits[:, -len(IDS[0]) :].double()
    return [[[round(x, 6) for x in place] for place in row] for row in logits.tolist()]


def make(folder):
    torch.manual_seed(11)
    config = transformers.LlamaConfig(initializer_range=0.25, tie_word_embeddings=False, **SIZES)
    base = transformers.LlamaForCausalLM(config)
    base.save_pretrained(folder / "base")
    words = {f"w{i}": i for i in range(SIZES["vocab_size"])}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "base/tokenizer.json"))
    expected = {"base": answers(base)}
    for name, config in ADAPTERS.items():
        base = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
        model = peft.get_peft_model(base, config)
        for weight in model.parameters():
            if weight.requires_grad:
                middle = 1.0 if name.startswith("ia3") else 0.0
                torch.nn.init.normal_(weight, middle, 0.3)
        expected[name] = answers(model)
        model.save_pretrained(folder / name)
        (folder / name / "README.md").unlink(missing_ok=True)
    write(folder, expected)


def read(base, folder):
    got = {}
    for path in sorted(folder.glob("*/adapter_config.json")):
        model = transformers.LlamaForCausalLM.from_pretrained(base)
        model = peft.PeftModel.from_pretrained(model, path.parent)
        got[path.parent.name] = answers(model)
    write(folder, got)


def write(folder, logits):
    text = json.dumps({"ids": IDS, "peft": peft.__version__, "logits": logits})
    (folder / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    {"make": make, "read": read}[what](*map(Path, paths))
