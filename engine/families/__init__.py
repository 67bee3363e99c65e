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

MODULES = (
    *(pangu, openpangu, llama, qwen, qwen_hybrid, gpt_oss, gemma3, gemma4, assistant, lfm2, glm),
    *(deepseek, ernie_moe, minimax, granite_moe, hunyuan_moe, phi, granite, ernie, seed_oss),
    *(hunyuan, olmo, ministral),
)
FAMILIES: tuple[Family, ...] = tuple(
    found for module in MODULES for found in vars(module).values() if isinstance(found, Family)
)

refuse(*REFUSED)
