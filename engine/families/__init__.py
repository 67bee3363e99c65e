"""The families of models that come with the engine. A family is a function from config.json to a
`DecoderShape`; one more is registered as these are, from wherever it is written."""

from fastslow.engine.families import gpt_oss, lfm2, llama, pangu, qwen, qwen_hybrid
from fastslow.engine.families.dense import ernie, granite, hunyuan, ministral, olmo, phi, seed_oss
from fastslow.engine.families.gemma import assistant, gemma3, gemma4
from fastslow.engine.families.mixtures import deepseek, glm, minimax, openpangu
from fastslow.engine.families.mixtures import ernie as ernie_moe
from fastslow.engine.families.mixtures import granite as granite_moe
from fastslow.engine.families.mixtures import hunyuan as hunyuan_moe
from fastslow.engine.families.refused import REFUSED
from fastslow.engine.model.family import Family, refuse

FAMILIES: tuple[Family, ...] = (
    pangu.MOGE,
    pangu.V2,
    openpangu.OPENPANGU,
    llama.EMBEDDED,
    llama.LLAMA,
    llama.MISTRAL,
    qwen.QWEN2,
    qwen.QWEN3,
    qwen.QWEN3_MOE,
    qwen_hybrid.QWEN3_5,
    qwen_hybrid.QWEN3_5_MOE,
    qwen_hybrid.QWEN3_NEXT,
    llama.SMOLLM3,
    gpt_oss.FAMILY,
    gemma3.GEMMA_3,
    gemma4.GEMMA_4,
    gemma4.GEMMA_4_UNIFIED,
    assistant.GEMMA_4_ASSISTANT,
    lfm2.LFM2,
    lfm2.LFM2_MOE,
    glm.GLM4_MOE,
    deepseek.V2,
    deepseek.V3,
    deepseek.LITE,
    deepseek.V32,
    deepseek.GLM5,
    ernie_moe.ERNIE4_5_MOE,
    minimax.MINIMAX_M2,
    granite_moe.GRANITE_MOE,
    hunyuan_moe.HUNYUAN_MOE,
    phi.PHI3,
    granite.GRANITE,
    granite.HYBRID,
    ernie.ERNIE4_5,
    seed_oss.SEED_OSS,
    hunyuan.HUNYUAN_DENSE,
    olmo.OLMO2,
    olmo.OLMO3,
    olmo.EXAONE4,
    ministral.MINISTRAL3,
    qwen.MIMO,
)

refuse(*REFUSED)
