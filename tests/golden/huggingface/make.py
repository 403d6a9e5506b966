"""Makes tiny random models with Hugging Face's own code, and what they answer.

    python make.py          # transformers 5.24.0, torch 2.13.0, tokenizers of that transformers

Each folder is as `save_pretrained` writes it, except that the weights are drawn wider than usual, so
that no part of the model is near zero. `expected.json` has the inputs and the answers in float32.
"""

import json
import pathlib

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

HERE = pathlib.Path(__file__).parent
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "oil", "leak", "on", "hydraulic", "hose", "line"]


def draw(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(around + 0.3 * noise)
    return model.eval()


def tokenizer(folder, bert):
    tok = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    if bert:
        tok.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    return tok


def llama():
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, rms_norm_eps=1e-5, max_position_embeddings=32,
        rope_theta=5000.0, tie_word_embeddings=False, bos_token_id=2, eos_token_id=3,
    )
    model = draw(LlamaForCausalLM(config), 1)
    model.save_pretrained(HERE / "llama")
    (HERE / "llama" / "generation_config.json").unlink()
    ids = tokenizer(HERE / "llama", False).encode("oil leak on hydraulic line").ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return {"text": "oil leak on hydraulic line", "ids": ids, "logits": logits.tolist()}


def bert():
    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=20, type_vocab_size=2,
    )
    model = draw(BertModel(config), 2)
    model.save_pretrained(HERE / "bert")
    tok = tokenizer(HERE / "bert", True)
    texts = ["oil leak on hydraulic line", "hose"]
    rows = [tok.encode(text).ids for text in texts]
    vectors = []
    with torch.no_grad():
        for row in rows:
            mean = model(torch.tensor([row])).last_hidden_state[0].mean(0)
            vectors.append((mean / mean.norm()).tolist())
    return {"texts": texts, "ids": rows, "vectors": vectors}


def vit():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        image_size=8, patch_size=4, num_channels=3, num_labels=3,
    )
    model = draw(ViTForImageClassification(config), 3)
    model.save_pretrained(HERE / "vit")
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    image = torch.sin(image * 0.37)
    with torch.no_grad():
        logits = model(image).logits
    return {"image": "sin(0.37 i), i the row-major index in [2, 3, 8, 8]", "logits": logits.tolist()}


torch.set_num_threads(1)
expected = {"llama": llama(), "bert": bert(), "vit": vit()}
(HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
