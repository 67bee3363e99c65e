"""The report on the number of groups."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fastslow.tools.tune.groups import GroupsFound, GroupsRow
from fastslow.tools.tune.html import (
    Plot,
    Point,
    Series,
    document,
    facts,
    head,
    legend,
    section,
    table,
    tiles,
    use,
)

AGREEMENT = """\
Of the tokens of answers given with all groups: how often fewer groups would say the same next. Graded
tasks, where there are any, tell whether what is said otherwise is worse."""
DIVERGENCE = """\
How far the law of the next token moves, as Kullback-Leibler divergence from all groups, in
thousandths of a nat."""
TIME = "One token at batch 1, median. What is saved here is what fewer groups are for."
TABLE = "The proposed number is the fewest that keep enough, if it saves time at all."


def headline(found: GroupsFound) -> str:
    """What is proposed, in a sentence."""
    row, all_ = found.proposed, found.all
    if row is all_:
        return (
            f"On {found.prompts} prompts, no smaller number of groups keeps {found.keep:.0%} and saves "
            f"time: the fast mode should run all {all_.groups}."
        )
    kept = f"the same next token at {row.agreement:.0%} of places"
    if row.score is not None and all_.score:
        kept = f"{row.score:.0%} of tasks right (all groups: {all_.score:.0%})"
    saved = 1 - row.seconds / all_.seconds
    return f"{row.groups} of {all_.groups} groups: {kept}, {saved:.0%} less time for a token."


def groups_page(found: GroupsFound, settings: str) -> str:
    """The whole report: HTML that needs nothing else. `settings`: name of the settings file."""
    over = f"fastslow tune --groups · {found.model}"
    warnings = ["It was stopped early: fewer prompts were compared."] if found.stopped else []
    row = found.proposed
    name, model = json.dumps(settings, ensure_ascii=False), json.dumps(found.model)
    figures = [
        (f"{row.groups} of {found.all.groups}", "groups proposed for the fast mode"),
        (f"{row.agreement:.0%}", "the same next token as all groups"),
        (f"{1000 * row.seconds:.2f} ms", f"a token; all groups {1000 * found.all.seconds:.2f} ms"),
    ]
    if row.score is not None:
        figures.append((f"{row.score:.0%}", "of the tasks right"))
    own = {
        "took": f"{found.seconds / 60:.1f} minutes; {found.prompts} prompts, {found.places} tokens, "
        f"{found.tasks} tasks",
        "answers": "given with all groups and without thinking, then read with fewer",
    }
    body = [
        head(over, headline(found), warnings),
        tiles(figures),
        use(f'llm = LLM({model}, modes={name})\nllm.chat(prompt, mode="fast")'),
        section("Agreement with all groups", AGREEMENT, agreement_chart(found)),
        section("Divergence", DIVERGENCE, divergence_chart(found)),
        section("Time", TIME, time_chart(found)),
        section("All numbers", TABLE, _table(found)),
        facts(own, found.circumstances),
    ]
    return document(f"fastslow tune --groups: {found.model}", body)


def agreement_chart(found: GroupsFound) -> str:
    """Agreement and score against the number of groups."""
    plot = _plot(found, "Agreement with all groups", "", 100.0, " %")
    series = [("same next token", 1, [100 * row.agreement for row in found.rows])]
    if found.all.score is not None:
        series.append(("tasks right", 3, [100 * (row.score or 0.0) for row in found.rows]))
    for name, colour, values in series:
        plot.draw(Series(name, colour, _points(found.rows, values, name, "%", found.proposed)))
    return plot.render() + legend((name, colour) for name, colour, _ in series)


def divergence_chart(found: GroupsFound) -> str:
    """KL divergence against the number of groups."""
    values = [1000 * row.divergence for row in found.rows]
    plot = _plot(found, "Divergence from all groups", "nats / 1000", 1.08 * max(*values, 1e-9), "")
    plot.draw(Series("divergence", 2, _points(found.rows, values, "KL", "", found.proposed)))
    return plot.render()


def time_chart(found: GroupsFound) -> str:
    """Milliseconds a token against the number of groups."""
    values = [1000 * row.seconds for row in found.rows]
    plot = _plot(found, "Time of a token", "ms a token", 1.12 * max(values), "")
    for row, value in zip(found.rows, values):
        colour = 1 if row is found.proposed else 0
        plot.bar(row.groups - 0.3, 0.6, value, colour, f"{row.groups} groups: {value:.2f} ms")
        plot.note(row.groups, value, f"{value:.2f}")
    return plot.render()


def _plot(found: GroupsFound, title: str, y_title: str, top: float, suffix: str) -> Plot:
    most = found.all.groups
    return Plot(
        title=title,
        x_title="routed groups a token",
        y_title=y_title,
        x_range=(-0.5, most + 0.5),
        y_top=top,
        x_labels=[(g, str(g)) for g in range(0, most + 1, 1 + most // 16)],
        y_suffix=suffix,
    )


def _points(
    rows: Sequence[GroupsRow], values: Sequence[float], name: str, unit: str, proposed: GroupsRow
) -> list[Point]:
    return [
        Point(
            row.groups,
            value,
            f"{row.groups} groups, {name}: {value:.1f}{unit}",
            hollow=row is not proposed,
        )
        for row, value in zip(rows, values)
    ]


def _table(found: GroupsFound) -> str:
    rows = []
    for row in found.rows:
        cells = [
            str(row.groups),
            f"{row.agreement:.1%}",
            f"{row.divergence:.3f}",
            f"{1000 * row.seconds:.2f}",
            f"{row.seconds / found.all.seconds:.0%}",
            "-" if row.score is None else f"{row.score:.1%}",
        ]
        rows.append((cells, "best" if row is found.proposed else ""))
    titles = ("groups", "same next token", "KL, nats", "ms a token", "of the time", "tasks right")
    return table(titles, rows)
