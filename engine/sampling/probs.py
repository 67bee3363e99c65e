"""From logits to probabilities under a request's sampling parameters.

In this order: a token that the grammar or the thinking budget forces; logit_bias, the lift of the
closing tag's logit and the min_tokens mask; penalties; the grammar's mask; temperature, top_k, top_p,
min_p. In the thought the budget decides, in the answer the grammar: it knows where the answer begins.
Where it must end, it does so before min_tokens, too. A row depends on its own request only, and on the
tokens *before* its position: committed ones, and drafted ones from the root to it. So all of it holds for
drafted tokens as it does without a draft. That text also says whether a row is in a thought, which may have
sampling parameters of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from fastslow.engine.params import SamplingParams
from fastslow.engine.token_mask import TokenMask
from fastslow.engine.types import Floats, LogitBoost, OneHot, Probs, RequestView

COLDEST = 1e-30  # float32 divides by it; below, a temperature would round to 0 and make 0 / 0


def probs_at(
    logits_V: torch.Tensor, request: RequestView, drafted: Sequence[int], likeliest: int = -1
) -> Probs:
    """The probabilities of the token after `request.tokens` and `drafted`, by logits f32 [V]: f32 [V] that
    sum to 1; where all is at temperature 0 the first of the likeliest tokens, or the forced one.
    likeliest: by the logits before a soft cap, where there is one, and nothing else shapes them; -1 = these say it.

    Raises FloatingPointError where the logits are not finite.
    """
    if not _finite(logits_V):
        raise FloatingPointError("the model's logits are not finite numbers")
    own = partial(int, likeliest) if likeliest >= 0 else partial(_argmax, logits_V)
    forced, mask = forced_at(request, drafted, own)
    if isinstance(forced, OneHot):
        return _certain(forced.token, request, len(logits_V))
    params, ends, shaped_V = _shaped(logits_V, request, drafted, forced, mask)
    token = likeliest if likeliest >= 0 and shaped_V is logits_V else _argmax(shaped_V)
    best = shaped_V[token]
    if not math.isfinite(best):
        by = "min_tokens forbids" if mask is None else "min_tokens and the grammar forbid"
        raise FloatingPointError(f"no token is left: {by} every one of them")
    if params.temperature == 0:
        return _certain(ends.get(token, token), request, len(logits_V))
    p_V = _weights(shaped_V, float(best), params.temperature)
    result = _min_p(_top_p(_top_k(p_V, params), params), params)
    result /= np.add.reduce(result)
    for end, token in ends.items():
        result[token] += result[end]
        result[end] = 0.0
    return result


def _certain(token: int, request: RequestView, size: int) -> Probs:
    """Probability 1 for a token."""
    if greedy(request):
        return OneHot(token)
    one_hot_V: Floats = np.eye(1, size, token, np.float32)[0]
    return one_hot_V  # a drafter that samples needs all of it


def greedy(request: RequestView) -> bool:
    """Tell whether nothing of an answer is drawn."""
    own = None if request.thinking is None else request.thought_params
    return request.params.temperature == 0 and (own is None or own.temperature == 0)


def _ends_at(
    request: RequestView, drafted: Sequence[int], mask: TokenMask | None
) -> tuple[Mapping[int, int], frozenset[int]]:
    """Tokens that would leave the answer empty: those that another token stands for, with it, and those that may
    not come."""
    if request.thinking is None or mask is not None:  # a grammar decides
        return {}, frozenset()
    ends, token = request.thinking.no_end(request.tokens, drafted)
    return ({}, ends) if token is None else (dict.fromkeys(ends, token), frozenset())


def would_end(
    logits_V: torch.Tensor, request: RequestView, drafted: Sequence[int], token: int
) -> bool:
    """Tell whether an end token was likelier than `token`, which stood for it inside a thought."""
    lift, mask = forced_at(request, drafted)
    if isinstance(lift, OneHot):
        return False
    _, ends, shaped_V = _shaped(logits_V, request, drafted, lift, mask)
    likelier = max((float(shaped_V[end]) for end in ends), default=-math.inf)
    return token in ends.values() and likelier > float(shaped_V[token])


def forced_at(
    request: RequestView, drafted: Sequence[int], likeliest: Callable[[], int] | None = None
) -> tuple[OneHot | LogitBoost | None, TokenMask | None]:
    """Return what a thinking budget and a grammar say of the token after `request.tokens` and `drafted`: one that is
    forced, or a logit that is raised; and which tokens may come. `likeliest`: the model's own token there."""
    mask = None if request.grammar is None else request.grammar.at(request.tokens, drafted)
    if mask is not None and mask.only is not None:
        return OneHot(mask.only), mask
    if request.thinking is None or (mask is not None and not mask.before):
        return None, mask
    return request.thinking.at(request.tokens, drafted, likeliest), mask


def one_hot(best: int, request: RequestView, drafted: Sequence[int]) -> OneHot:
    """`probs_at` where `only_best` holds: the likeliest token, or the forced one."""
    if request.thinking is None and request.grammar is None:
        return OneHot(best)
    forced, mask = forced_at(request, drafted, partial(int, best))
    assert not isinstance(forced, LogitBoost), "rows near a raised logit have all of their logits"
    assert mask is None, "rows under a grammar have all of their logits"
    if forced is not None:
        return forced
    ends, barred = _ends_at(request, drafted, None)
    if best in barred:  # after a draft alone: where the text ends so, `only_best` does not hold
        raise LookupError("the second best token is wanted, and only the best is known")
    return OneHot(ends.get(best, best))


def scored_probs_at(
    logits_V: torch.Tensor, request: RequestView, drafted: Sequence[int], likeliest: int = -1
) -> Probs:
    """`probs_at`; at temperature 0 with the probabilities of temperature 1 as `OneHot.probs`. A forced
    token has none: no other token may come there."""
    decided = probs_at(logits_V, request, drafted, likeliest)
    if not isinstance(decided, OneHot):
        return decided
    forced, mask = forced_at(request, drafted)
    if isinstance(forced, OneHot):
        return decided
    _, _, shaped_V = _shaped(logits_V, request, drafted, forced, mask)
    return OneHot(decided.token, torch.softmax(shaped_V, dim=-1).numpy(force=True))


def only_best(request: RequestView) -> bool:
    """Tell whether the likeliest token is all that this step needs of the logits."""
    params = request.params
    return (
        request.grammar is None
        and params.logprobs is None
        and params.prompt_logprobs is None
        and not params.logit_bias
        and _plain(params)
        and (request.thinking is None or _plain(request.thought_params or params))
        and len(request.tokens) - request.prompt_length >= params.min_tokens
        and (request.thinking is None or not request.thinking.lifts(request.tokens))
        and not _ends_at(request, (), None)[1]
    )


def _plain(params: SamplingParams) -> bool:
    return params.temperature == 0 and not _penalises(params)


def _penalises(params: SamplingParams) -> bool:
    others = params.presence_penalty or params.frequency_penalty
    return params.repetition_penalty != 1.0 or bool(others)


# On the CPU with numpy: torch would wake its threads for one row, which takes longer than the sum.
def _finite(logits_V: torch.Tensor) -> bool:
    on_cpu = logits_V.device.type == "cpu"
    total = np.add.reduce(logits_V.numpy()) if on_cpu else float(logits_V.sum())
    return math.isfinite(total)


def _weights(logits_V: torch.Tensor, best: float, temperature: float) -> Floats:
    """Probabilities that need not sum to 1. best: the largest of the logits."""
    with np.errstate(over="ignore"):
        p_V = (logits_V.numpy(force=True) - best) / np.float32(max(temperature, COLDEST))
    return np.exp(p_V, out=p_V)


def best_token(logits_V: torch.Tensor) -> int:
    """The first of the likeliest; -1 where the logits are not finite."""
    return _argmax(logits_V) if _finite(logits_V) else -1


def _argmax(logits_V: torch.Tensor) -> int:
    return int(logits_V.numpy().argmax() if logits_V.device.type == "cpu" else logits_V.argmax())


def logprobs(logits_V: torch.Tensor, chosen: int, most: int) -> dict[int, float]:
    """Log-probabilities of the model itself (before bias, penalties, temperature): of the `most` likeliest
    tokens, likeliest first, and of the chosen one, always."""
    log_p_V = torch.log_softmax(logits_V, dim=-1)
    best = torch.topk(log_p_V, min(most, len(log_p_V)))
    table = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    table.setdefault(chosen, float(log_p_V[chosen]))
    return table


def log_probability(logits_V: torch.Tensor, token: int) -> float:
    """Of one token, as the model itself has it (before bias, penalties, temperature)."""
    values_V = logits_V.numpy(force=True)
    best = values_V.max()
    total = np.exp(values_V - best).sum(dtype=np.float64)
    return float(values_V[token] - best) - math.log(total)


def _shaped(
    logits_V: torch.Tensor,
    request: RequestView,
    drafted: Sequence[int],
    lift: LogitBoost | None,
    mask: TokenMask | None,
) -> tuple[SamplingParams, Mapping[int, int], torch.Tensor]:
    """The sampling parameters of the token after `request.tokens` and `drafted`, the tokens for which another one
    stands, with it, and the logits by all of that."""
    thinking, params, own = request.thinking, request.params, request.thought_params
    if thinking is not None and own is not None and (mask is None or mask.before):
        params = own if thinking.inside(request.tokens, drafted) else params
    ends, barred = _ends_at(request, drafted, mask)
    shaped_V = _biased(logits_V, request, len(drafted), lift, barred)
    if _penalises(params):
        shaped_V = _penalised(shaped_V, request, params, drafted)
    return params, ends, shaped_V if mask is None else mask.applied(shaped_V)


def _biased(
    logits_V: torch.Tensor,
    request: RequestView,
    ahead: int,
    lift: LogitBoost | None,
    barred: frozenset[int],
) -> torch.Tensor:
    params = request.params
    if len(request.tokens) + ahead - request.prompt_length < params.min_tokens:
        barred |= request.end_ids
    if not params.logit_bias and not barred and lift is None:
        return logits_V
    logits_V = logits_V.clone()
    if lift is not None:
        logits_V[lift.token] += lift.by
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits_V.device)
        logits_V[ids] += torch.tensor(list(params.logit_bias.values()), device=logits_V.device)
    if barred:
        out = [token for token in sorted(barred) if token < len(logits_V)]
        logits_V[torch.tensor(out, dtype=torch.long, device=logits_V.device)] = -torch.inf
    return logits_V


def _penalised(
    logits_V: torch.Tensor, request: RequestView, params: SamplingParams, drafted: Sequence[int]
) -> torch.Tensor:
    """Repetition over the whole text (Keskar et al. 2019), presence and frequency over the answer."""
    repetition = params.repetition_penalty != 1.0
    presence, frequency = params.presence_penalty, params.frequency_penalty
    logits_V = logits_V.clone()
    text = torch.tensor([*request.tokens, *drafted], device=logits_V.device)
    if repetition:
        seen = torch.unique(text)
        value = logits_V[seen]
        worse = torch.where(value > 0, 1 / params.repetition_penalty, params.repetition_penalty)
        logits_V[seen] = value * worse
    if presence or frequency:
        seen, counts = torch.unique(text[request.prompt_length :], return_counts=True)
        logits_V[seen] -= presence + frequency * counts
    return logits_V


def _top_k(p_V: Floats, params: SamplingParams) -> Floats:
    if not 0 < params.top_k < len(p_V):
        return p_V
    least = np.partition(p_V, -params.top_k)[-params.top_k]
    return np.where(p_V >= least, p_V, 0)  # equals of the k-th stay


def _top_p(p_V: Floats, params: SamplingParams) -> Floats:
    if params.top_p >= 1:
        return p_V
    total = p_V.sum(dtype=np.float64)
    # all below half of this are less than 1 - top_p together
    rest = (1 - params.top_p) * total / len(p_V)
    sorted_N = np.sort(p_V[p_V >= rest / 2])[::-1]
    before_N = np.cumsum(sorted_N, dtype=np.float64) - sorted_N
    count = max(1, int(np.count_nonzero(before_N < params.top_p * total)))
    least = sorted_N[count - 1]
    kept_V = np.where(p_V > least, p_V, 0)
    equals = np.flatnonzero(p_V == least)  # the first of them stay
    kept_V[equals[: count - int(np.count_nonzero(kept_V))]] = least
    return kept_V


def _min_p(p_V: Floats, params: SamplingParams) -> Floats:
    if params.min_p == 0:
        return p_V
    return np.where(p_V >= params.min_p * p_V.max(), p_V, 0)
