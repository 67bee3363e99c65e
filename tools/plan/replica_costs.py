"""Step costs of a planned replica, for `fastslow simulate run`."""

from __future__ import annotations

from dataclasses import replace

from fastslow.tools.plan.search import USABLE
from fastslow.tools.plan.step import Setting
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts

ROWS = tuple(sorted({1, 8192} | {n << k for n in (2, 3) for k in range(9)} | {1024, 2048, 4096}))
FAR = 1024  # tokens of context, to see what one takes
PAGE, MAX_RUNNING, PROMPT_ROWS = 16, 256, 2048


def planned_costs(setting: Setting, source: str = "") -> ReplicaCosts:
    """A replica on the setting's cards, with the modes "fast" and "deep", without drafts. ValueError: the weights do
    not fit."""
    work = setting.work
    room = setting.cards * (setting.device.memory * USABLE - setting.memory(0, 0))
    room -= min(room / 2, MAX_RUNNING * work.request)
    pages = int(room / (work.kv * setting.precision.kv * PAGE))
    if pages < 1:
        raise ValueError(
            f"cards={setting.cards}: the weights do not fit into {setting.cards} x {setting.device.name}"
        )
    each = {"fast": setting.of(replace(work, chosen=work.fewer)), "deep": setting}
    far, none = setting.decode(1, 1, FAR), setting.decode(1, 1, 0)
    attention = (far.compute - none.compute) / FAR
    return ReplicaCosts(
        modes={name: _mode(one, attention) for name, one in each.items()},
        pages=pages,
        page_tokens=PAGE,
        max_running=MAX_RUNNING,
        prompt_rows=PROMPT_ROWS,
        context_seconds=(far.seconds - none.seconds) / FAR,
        attention_seconds=attention,
        source=source,
    )


def _mode(setting: Setting, attention: float) -> ModeSteps:
    """The curves of one mode, without what depends on the context."""
    prompts = []
    for rows in ROWS:
        terms = setting.prefill(1, rows)
        prompts.append(terms.seconds - (rows * rows / 2 * attention if terms.compute else 0.0))
    return ModeSteps(
        rows=ROWS,
        seconds=tuple(setting.decode(rows, 1, 0).seconds for rows in ROWS),
        prompt_seconds=tuple(prompts),
    )
