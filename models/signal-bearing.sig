”Ù*application/vnd.gaisnet.model-card.v1+tomlÅ1name = "signal-bearing"
licence = "Apache-2.0"
sha256 = "460f48471510c4e96906699fe5c9dedb6f76308ddf4d6066f66401dbd8ed1daf"
bytes = 427012
classes = ["healthy", "inner", "outer"]
sample_rate_hz = 48828.0
made = "gaisnet pretrain, seed 1, 1600 steps of 64 windows, peak learning rate 0.002: trained on signals generated from bearing physics (src/learn/physics.rs), without any plant data"

[architecture] # signal transformer, src/torch/signal.rs
window = 2048
patch = 64
stride = 48
layers = 3
classes = 3

[architecture.block]
d_model = 64
heads = 4
d_ff = 128
‘’Ä`bµ¿PßÄ@0³,(Ğì¡ ËspÏ9¶ğÁúõ&zÊf¥fƒ°ËPlr#;mvqù;F"KÓ•úÓD%·IÜÄ%