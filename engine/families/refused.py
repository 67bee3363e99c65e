"""Models that are known and do not run: what they have that no part here computes."""

from fastslow.engine.model.family import Refusal

# How names of architectures begin, in small letters without marks (a point ends a whole name); models; the reason;
# what the nearest architecture that runs is called, up to "For".
TABLE = """\
mamba falconmamba nemotronh falconh1 bamba jamba zamba plamo2 | Mamba 1 and 2, Nemotron-H, Nemotron 3 Nano, \
Falcon-H1, Bamba, Jamba, Zamba, PLaMo 2 | it has Mamba layers | qwen3_5
granitemoehybrid granitehybrid | Granite 4 H | it has Mamba layers | granite
rwkv arwkv | RWKV | it has RWKV layers | qwen3_5
recurrentgemma | RecurrentGemma | it has gated linear recurrences (RG-LRU) | gemma3
kimilinear bailinghybrid | Kimi-Linear, Ling and Ring 2.5 and later | it has delta nets with a decay for each channel \
of keys (KDA), and attention with latent keys | qwen3next
glm5next | GLM-5.3-Flash | it has delta nets with a decay for each channel of keys (KDA), several residual streams \
(hyper-connections) and sparse attention | glm4moe
minimax. minimaxtext minimaxm1 | MiniMax-Text-01, MiniMax-M1 | it has lightning attention | minimaxm2
deepseekv4 deepseek4 | DeepSeek V4 | it has several residual streams (hyper-connections), and attention over \
compressed rows | deepseekv3
hyv4 | Hunyuan 4 | it has several residual streams (hyper-connections) and sparse attention | hunyuanmoev1
qwen4exp qwen38flashnext | Qwen3.8-Flash-Next | it has several residual streams (hyper-connections), hashed n-gram \
embeddings and block-sparse attention | qwen3_5moe
lfm3 | LFM3 | it has a gate for each head of attention, another RoPE in sliding-window layers, \
convolutions of 7 tokens and norms after sublayers | lfm2
deepseek32 | DeepSeek V3.2 in GGUF files | no family reads its names of tensors yet: folders run | deepseekv32
kimik2 mistral4 minicpm3 longcat youtu | Kimi K2.5, Mistral 4, MiniCPM3, LongCat-Flash, Youtu | no family reads its \
config yet, though attention with latent keys (MLA) runs | deepseekv3
gemma2 | Gemma 2 | no family reads its config yet: soft caps of attention scores, and norms around sublayers | gemma3
mixtral | Mixtral | no family reads its config and names of tensors yet | qwen3moe
olmoe | OLMoE | no family reads its config yet: experts beside norms of all heads together | olmo3
glm4. | GLM-4, dense | no family reads its config yet: interleaved RoPE, and norms before and after sublayers | llama
bailingmoev2. bailingmoe2. | Ling 2 | no family reads its config and names of tensors yet | glm4moe
gemma3n | Gemma 3n | it has several residual streams (AltUp) and sparse MLPs | gemma3
llama4 | Llama 4 | it attends in chunks, and scales the input of experts, not their output | qwen3moe
mllama | Llama 3.2 Vision | it has cross-attention to images | llama
cohere command | Command R, R7B and A, Aya | its layers have attention and an MLP side by side | llama
falcon gptneo gptj gpt2 gptbigcode opt bloom mpt phi. phi2 starcoder nemotron arcee apertus | GPT-2, GPT-J, GPT-NeoX, \
OPT, BLOOM, MPT, Falcon 1 and 2, Phi-1 and 2, StarCoder, Nemotron-4, Arcee, Apertus | its MLPs have no gate | llama
phimoe | Phi-3.5-MoE | its router leaves out experts far from the best one (SparseMixer) | qwen3moe
phi4mm phi4multimodal | Phi-4-multimodal | it has LoRA adapters for images and sound | phi3
bitnet | BitNet | it has norms inside its MLPs | llama
llada dream diffusiongemma | LLaDA, Dream, DiffusionGemma | it is a diffusion model | qwen3
t5 mt5 umt5 bart whisper | T5, BART, Whisper | it has an encoder | qwen3
"""
REFUSED = [
    Refusal(tuple(names.split()), *rest)
    for names, *rest in (line.split(" | ") for line in TABLE.splitlines())
]
