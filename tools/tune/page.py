"""The report of `fastslow tune`: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from html import escape
from itertools import groupby

from fastslow.engine.host.machine import CONTENDED
from fastslow.engine.params import Speculation
from fastslow.tools.tune.answer import Answer
from fastslow.tools.tune.candidates import PLAIN, family, is_plain, label
from fastslow.tools.tune.charts import (
    Palette,
    acceptance_chart,
    batch_chart,
    cost_chart,
    length_chart,
)
from fastslow.tools.tune.html import document, facts, head, legend, section, tag, tiles, use
from fastslow.tools.tune.sample import accepted_share, step_cost, tokens_per_step
from fastslow.tools.tune.tune import TuneResult


def headline(found: TuneResult) -> str:
    """How much faster what was found is than plain decoding, and what it is."""
    tried = len([s for s in found.measured if not is_plain(s)])
    if is_plain(found.best):
        return (
            f"On {found.prompts} prompts, none of {tried} drafting settings is faster than plain "
            f"decoding with {found.plain_rate:.1f} tokens/s."
        )
    return (
        f"On {found.prompts} prompts, {_action(found.best)} is {found.ratio(found.best):.2f} times "
        f"as fast as plain decoding: {found.rate(found.best):.1f} instead of "
        f"{found.plain_rate:.1f} tokens/s."
    )


def _action(setting: Speculation) -> str:
    if setting.nodes is None:
        return f"drafting with {family(setting)}, as far as pays,"
    tokens = "1 token" if setting.nodes == 1 else f"up to {setting.nodes} tokens"
    return f"drafting {tokens} a step with {family(setting)}"


NOISY = 1 / 3  # share of runs beside other work from which on the report warns
QUESTION = 400  # characters shown of what was asked

SETTINGS = """\
A setting is as fast as its tokens per step, divided by how much longer a step takes than plain
decoding's. Grey ones dropped out early."""
LENGTHS = """\
Longer drafts save steps if they are accepted, and cost rows if not. Above the dashed line drafting
pays. Hollow points dropped out of the search early and rest on fewer prompts."""
ACCEPTANCE = """\
Of the drafts that were this long, the share that the model agreed with up to each position. Where a
curve comes near zero, longer drafts are wasted. Answers count by the tokens drafted for them."""
COST = """\
The time from one step to the next, against the rows that ran in it. The line is plain decoding, one
row for each request; single points are settings with drafts, whose time holds the drafter's own."""
BATCH = """\
Speculation uses capacity that a small batch leaves idle. As more requests run together, less of it is
left."""
ANSWERS = """\
Coloured words were drafted, and the model agreed; the others it said itself, one in each step.
Drafting changes how fast an answer comes, not what it says."""


def page(found: TuneResult, settings: str = "tuned.json") -> str:
    """The whole report.

    Args:
        found: what tuning found; parts that were not measured say so.
        settings: name of the settings file, for the lines that tell how to use it.

    Returns:
        HTML without scripts and without anything to load, in light and dark.
    """
    palette = Palette()
    for setting in found.samples:
        palette.of(family(setting))
    over = f"fastslow tune · {found.model} · mode {found.mode} · batch {found.batch}"
    body = [
        head(over, headline(found), _warnings(found)),
        _tiles(found),
        _use(found, settings),
        section("All settings", SETTINGS, _table(found, palette)),
        section("Tokens per second by draft length", LENGTHS, length_chart(found, palette)),
        section("Acceptance by position", ACCEPTANCE, acceptance_chart(found, palette)),
        section("What a step costs", COST, cost_chart(found, palette)),
        section("Batch size", BATCH, batch_chart(found, palette)),
        tag("section", _answers(found, palette)),
        _facts(found),
    ]
    return document(f"fastslow tune: {found.model}", body)


def _warnings(found: TuneResult) -> list[str]:
    said = []
    if found.stopped:
        said.append("The search was stopped early: this is the best until then.")
    marked, known = _contended(found)
    if marked > NOISY * known:
        said.append(
            f"Other programs took much of the machine in {marked} of {known} runs. Where settings "
            "lie close together, run this again when it is quiet."
        )
    return said


def _contended(found: TuneResult) -> tuple[int, int]:
    """Runs during which others took more than a little of the machine, and runs that know."""
    every = (*found.samples.values(), *found.sizes.values())
    shares = [s.others for samples in every for s in samples if s.others is not None]
    return sum(share > CONTENDED for share in shares), len(shares)


def _tiles(found: TuneResult) -> str:
    samples = found.samples[found.best]
    share = accepted_share(samples)
    pairs = [
        (f"{found.ratio(found.best):.2f} x", "plain decoding"),
        (f"{found.rate(found.best):.1f}", f"tokens/s, {label(found.best)}"),
        (f"{tokens_per_step(samples):.2f}", "tokens per step"),
        ("-" if share is None else f"{share:.0%}", "of drafts accepted"),
    ]
    return tiles(pairs)


def _use(found: TuneResult, settings: str) -> str:
    name = json.dumps(settings, ensure_ascii=False)
    code = f"llm = LLM({json.dumps(found.model)})\nllm.generate(prompt, speculation={name})"
    return use(code)


def _table(found: TuneResult, palette: Palette) -> str:
    titles = ("setting", "", "x plain", "tokens/s", "tokens/step", "step time", "accepted", "runs")
    head = tag("tr", "".join(tag("th", escape(title)) for title in titles))
    most = max((found.ratio(s) for s in found.measured), default=1.0)
    lines = []
    for setting in found.measured:
        samples = found.samples[setting]
        times, share = found.ratio(setting), accepted_share(samples)
        meter = tag("i", style=f"width:{100 * times / most:.1f}%")
        colour = f"meter c{palette.of(family(setting))}"
        cells = [
            f"{times:.2f}",
            f"{found.rate(setting):.1f}",
            f"{tokens_per_step(samples):.2f}",
            f"{step_cost(samples, found.samples[PLAIN]):.2f} x",
            "-" if share is None else f"{share:.0%}",
            str(len(samples)),
        ]
        row = tag("td", escape(label(setting))) + tag("td", meter, class_=colour)
        row += "".join(tag("td", cell) for cell in cells)
        kept = setting in found.finalists or is_plain(setting)
        kind = "best" if setting == found.best else "" if kept else "out"
        lines.append(tag("tr", row, class_=kind))
    return tag("table", head + "".join(lines))


def _answers(found: TuneResult, palette: Palette) -> str:
    title = tag("h2", "Sample answers") + tag("p", ANSWERS, class_="hint")
    if not found.answers:
        return title + tag("p", "Not measured.")
    names = dict.fromkeys(t.origin for a in found.answers for t in a.tokens if t.origin)
    keys = legend((name, palette.of(name)) for name in names)
    return title + keys + "".join(answer_html(a, palette) for a in found.answers)


def answer_html(answer: Answer, palette: Palette) -> str:
    """A question and its answer, drafted tokens marked in the colours of their drafters."""
    asked = answer.question
    if len(asked) > QUESTION:
        asked = asked[:QUESTION].rstrip() + " ..."
    runs = []
    for origin, tokens in groupby(answer.tokens, key=lambda token: token.origin):
        words = escape("".join(token.text for token in tokens))
        if origin is not None and words:
            colour = f"c{palette.of(origin)}"
            words = tag("mark", words, class_=colour, title=f"drafted by {origin}")
        runs.append(words)
    figures = f"{answer.tokens_per_step:.2f} tokens per step"
    parts = (
        tag("p", escape(asked), class_="asked"),
        tag("div", "".join(runs), class_="answer"),
        tag("p", figures, class_="hint"),
    )
    return tag("article", "".join(parts))


def _facts(found: TuneResult) -> str:
    marked, known = _contended(found)
    runs = sum(map(len, (*found.samples.values(), *found.sizes.values())))
    own = {
        "took": f"{found.seconds / 60:.1f} minutes, {runs} runs of {found.batch} or more prompts",
        "answers": json.dumps(found.sampling.model_dump(mode="json", exclude_defaults=True)),
        "side by side": "every run beside plain decoding on the same prompts, in changing order",
        "other work": f"took over {CONTENDED:.0%} of the machine in {marked} of {known} runs",
    }
    return facts(own, found.circumstances)
