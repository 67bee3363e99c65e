"""W8A8: weights in int8 per output channel, activations in int8 per token.

After the expert-aware quantisation of Pangu Pro MoE (arXiv 2505.21411) and SmoothQuant
(arXiv 2211.10438).

**What a device needs of a quantised checkpoint** is `linear.QuantLinear`: `weight_OI` int8 [O, I] and
`scale_O` float32 [O], with y = (x @ weight.T) * scale; symmetric, no offsets. Smoothing is folded
into the norms (and into the rows of the matrix before) when the checkpoint is made, so nothing of it
is left to run. Activations are quantised as they come, one scale per token: `linear.quantise_tokens`
is the reference. Biases, norms, the router's gate and its scales stay in float.

    scheme = Scheme.from_folder(folder)          # None: the folder is not quantised
    with Checkpoint.open(folder, config, scheme).reader(progress) as raw:
        reader = QuantReader(raw, scheme)
        reader.linear("model.layers.0.self_attn.q_proj.weight")   # QuantLinear, or None: it is float
        reader.read("model.layers.0.self_attn.q_proj.bias")       # any tensor as float

`linear.QuantLinear.stack` puts q, k and v, or gate and up, below each other; nothing is rounded again.

**Files.** safetensors under the names that Ascend's exporters use: `X.weight` int8, `X.weight_scale`
[O, 1]; `quant_model_description.json` says of every tensor FLOAT, W8A8_DYNAMIC (per token) or W8A8
(static), and `quantization_config` in config.json says `quant_method` "ascend". Static W8A8 is read,
too: its weights and their scales are what they are, and its activations are quantised per token
instead, which is finer. Keys and values: `k_proj.kv_cache_scale` and `v_proj.kv_cache_scale`, float32
[kv_heads * head_dim], per channel, with `kv_cache_type` "C8" in the description.
"""
