"""Modes as presets."""

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Escalation, Loop, Mode, SamplingParams, Speculation
from fastslow.policies.meaning import meaning
from fastslow.policies.modes import builtin_modes, find_mode, load_modes

GROUPS, DENSE = RoutedUnits("groups", 8), RoutedUnits("groups", 0)
EXPERTS, LONELY = RoutedUnits("experts", 8), RoutedUnits("experts", 8, least=1)


def test_fast_runs_a_quarter_of_the_groups_and_deep_all(tmp_path: Path) -> None:
    modes = builtin_modes(GROUPS)
    assert (modes["fast"].groups, modes["fast"].thinking) == (2, "off")
    assert (modes["deep"].groups, modes["deep"].thinking) == (None, "on")
    assert builtin_modes(DENSE)["fast"].groups is None, "a dense model has no groups to leave out"
    assert not any("expert" in mode.description for mode in builtin_modes(DENSE).values())
    assert load_modes(tmp_path, GROUPS) == modes and find_mode("fast", modes, GROUPS) is modes["fast"]
    own = Mode(name="mine", groups=3)
    assert find_mode(own, modes, GROUPS) is own
    refused(r"^mode='fats' is unknown; did you mean 'fast'\?$", find_mode, "fats", modes, GROUPS)


def presets(folder: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "fastslow.json").write_text(text, "utf-8")
    return folder


def test_a_checkpoint_changes_and_adds_presets(tmp_path: Path) -> None:
    careful: dict[str, Any] = {"thinking": "on", "groups": 8}
    careful["sampling"] = {"temperature": 0.5, "max_tokens": 9}
    careful["speculation"] = {"drafter": "self", "nodes": 2}
    content = {"other": "of another program", "modes": {"fast": {"groups": 4}, "careful": careful}}
    modes = load_modes(presets(tmp_path, content), GROUPS)
    assert set(modes) == {"fast", "deep", "auto", "careful"}
    assert modes["fast"] == builtin_modes(GROUPS)["fast"].model_copy(update={"groups": 4})
    made = modes["careful"]
    assert made.name == "careful" and made.sampling == SamplingParams(temperature=0.5, max_tokens=9)
    assert made.speculation == Speculation(drafter="self", nodes=2)
    assert find_mode("careful", modes, GROUPS).groups is None, "all 8 of 8 is written as None"


def test_the_users_presets_come_last(tmp_path: Path) -> None:
    folder = presets(tmp_path, {"modes": {"fast": {"groups": 4, "sampling": {"top_p": 0.9}}}})
    own: dict[str, Mode | dict[str, Any]] = {
        "bot": {"base": "slow", "sampling": {"seed": 3}},  # made of one that comes later
        "slow": Mode(base="fast", thinking="on", sampling=SamplingParams(temperature=0.5)),
        "fast": {"latency_ms": 80},
    }
    modes = load_modes(folder, GROUPS, own)
    assert set(modes) == {"fast", "deep", "auto", "bot", "slow"}
    fast, bot = modes["fast"], modes["bot"]
    assert (fast.groups, fast.latency_ms, fast.thinking) == (4, 80, "off")
    assert (bot.name, bot.base, bot.groups) == ("bot", None, 4) and (bot.thinking, bot.latency_ms) == ("on", 80)
    assert bot.sampling == SamplingParams(top_p=0.9, temperature=0.5, seed=3)
    assert bot.description == "", "the base's own would not be true"
    path = tmp_path / "my.json"
    path.write_text(json.dumps({"modes": {"bot": {"base": "deep", "thinking_budget": 9}}}))
    for given in (path, str(path)):
        bot = load_modes(tmp_path, GROUPS, given)["bot"]
        assert (bot.thinking_budget, bot.thinking) == (9, "on")


CHAIN = {f"m{i}": {"base": f"m{i + 1}"} for i in range(1000)}


@pytest.mark.parametrize(("content", "own", "pattern"), [
    ("{", {}, r"fastslow.json cannot be read: .*Expecting"),
    ("[]", {}, r"fastslow.json cannot be read: .*JSON object"),
    ({"modes": 5}, {}, r"modes=5 must be a valid dictionary$"),
    ({"modes": {"x": {"grups": 1}}}, {}, r"field 'grups' is unknown; did you mean 'groups'\?$"),
    ({"modes": {"x": {"groups": 9}}}, {}, r"mode 'x': groups=9 is outside 0\.\.8$"),
    ({"modes": {"x": {"sampling": {"top_p": 7}}}}, {}, r"sampling\.top_p=7 must be less than"),
    pytest.param({}, CHAIN, "mode 'm0' has more than 32 bases", id="a long chain"),
    pytest.param({}, {f"m{i}": {} for i in range(1001)}, "has 1001 presets", id="many"),
    ({}, {"a": {"base": "b"}, "b": {"base": "a"}}, r"base goes round in a circle, a > b > a$"),
    ({}, {"a": {"base": "depp"}}, r"^modes: mode='depp' is unknown; did you mean 'deep'\?$"),
    ({}, {"a": 5}, r"^modes: modes\.a=5 must be a valid dictionary$"),
    ({}, {"a": {"thinking_soft": 4}}, r"thinking_soft=4 needs a thinking_budget$"),
    ({}, {"a": {"thinking_budget": 2, "thinking_soft": 4}}, r"thinking_soft=4 exceeds"),
    ({}, {"a": {"escalate": {"window": 2}}}, r"^modes: field 'escalate\.below' is missing$"),
    ({}, {"a": {"base": ["deep"]}}, r"modes\.a\.base=\['deep'\] must be a preset's name$"),
    ({}, {"a": {5: 1}}, r"^modes: modes\.a=\{5: 1\} must have names of fields as its keys$"),
    ({}, "nothing.json", r"^presets in nothing\.json cannot be read: there is no such file"),
], ids=str)  # fmt: skip
def test_presets_that_do_not_fit(tmp_path: Path, content: object, own: Any, pattern: str) -> None:
    refused(pattern, load_modes, presets(tmp_path, content), GROUPS, own)


def test_a_call_changes_any_field_of_a_preset() -> None:
    modes = builtin_modes(GROUPS)
    changed = find_mode({"base": "deep", "thinking_budget": 64}, modes, GROUPS)
    assert changed == modes["deep"].model_copy(update={"name": "deep*", "thinking_budget": 64, "description": ""})
    same = find_mode(Mode(base="deep", thinking_budget=64, name="mine"), modes, GROUPS)
    assert (same.name, same.thinking, same.thinking_budget) == ("mine", "on", 64)
    assert find_mode({"groups": 2}, modes, GROUPS) == Mode(groups=2)
    hot = {"deep": Mode(name="deep", sampling=SamplingParams(temperature=0.7, top_p=0.9))}
    cooler = find_mode({"base": "deep", "sampling": {"temperature": 0.1}}, hot, GROUPS)
    assert cooler.sampling == SamplingParams(temperature=0.1, top_p=0.9)
    assert find_mode(Mode(base="deep", sampling=None), hot, GROUPS).sampling is None
    assert find_mode({"base": "deep", "groups": 8}, modes, GROUPS).groups is None
    refused(r"^mode 'fast\*': groups=9 is outside 0\.\.8$", find_mode, {"base": "fast", "groups": 9}, modes, GROUPS)


def test_a_call_changes_fields_of_what_a_preset_has_set() -> None:
    careful = Mode(name="bot", escalate=Escalation(below=0.4, window=9), thinking_budget=9)
    modes = {"bot": careful, "soft": careful.model_copy(update={"name": "soft", "thinking_soft": 6})}
    changed = find_mode({"base": "bot", "escalate": {"window": 2}}, modes, GROUPS).escalate
    assert changed == Escalation(below=0.4, window=2)
    assert find_mode({"base": "bot", "escalate": None}, modes, GROUPS).escalate is None
    for most, left in ((4, 4), (20, 6), (None, 0), (0, 0)):
        mode = find_mode({"base": "soft", "thinking_budget": most}, modes, GROUPS)
        assert (mode.thinking_budget, mode.thinking_soft) == (most, left)
    with pytest.raises(ValueError, match="thinking_soft=6 exceeds thinking_budget=4"):
        find_mode({"base": "soft", "thinking_budget": 4, "thinking_soft": 6}, modes, GROUPS)
    for wrong in ({5: 1}, {"base": 5}, {"base": ["bot"]}):
        refused("must", find_mode, wrong, modes, GROUPS)


def test_a_mode_in_words() -> None:
    plain = meaning(builtin_modes(GROUPS)["fast"], GROUPS)
    assert plain["groups"] == "2 of 8" and plain["budget"] == plain["escalation"] == "-"
    assert "closed as soon as it opens" in plain["thinking"]
    own = Mode(
        groups=0, thinking="on", thinking_budget=64, thinking_soft=16, loop=Loop(), closing="\nSo:\n",
        sampling=SamplingParams(temperature=0.6, top_k=50), speculation=Speculation(drafter="self", nodes=3),
        latency_ms=200, may_shorten=("draft", "groups"), escalate=Escalation(below=0.4, how="keep"),
    )  # fmt: skip
    assert meaning(own, GROUPS) == {
        "groups": "shared experts only, 0 of 8",
        "thinking": "on, where the model can",
        "budget": "at most 64 tokens of thought; over the last 16 the model closes more readily; "
        "ended where a thought goes round in circles; then 'So:'",
        "sampling": "temperature 0.6, top_k 50",
        "drafter": "self, 3 tokens a step",
        "latency": "200 ms, cutting draft and groups (lossy) if need be",
        "escalation": "to deep where the confidence over 16 tokens is below 0.4 (keep, lossy)",
    }
    assert meaning(Mode(), DENSE)["groups"] == "dense"
    steered = Mode(
        thinking_budget=500, turn_budget=800, warn_at=0.8, answer_room=100, confidence=True,
        thought={"temperature": 1.0, "speculation": "off"}, answer={"top_p": 0.5},
    )  # fmt: skip
    words = meaning(steered, DENSE)
    assert words["budget"] == (
        "at most 500 tokens of thought; at most 800 in a turn of the user; 100 tokens of max_tokens kept for the "
        "answer; a warning once 80% of the budget is used; ended where the answer is the same 2 times in a row, asked "
        "every 32 tokens"
    )
    assert words["sampling"].endswith("; in the thought temperature 1.0; in the answer top_p 0.5")
    assert words["drafter"] == "the engine's own; in the thought off"
    lossy = Speculation(drafter="self", accept="lossy-stepwise")
    doubt = Escalation(below=0.4, window=1, within=9, how="restart")
    other = meaning(Mode(speculation=lossy, escalate=doubt), GROUPS)
    assert other["drafter"] == "self, lossy-stepwise"
    assert other["escalation"].endswith(" over a token is below 0.4, in the first 9 (restart)")
    auto = meaning(builtin_modes(GROUPS)["auto"], GROUPS)
    assert auto["groups"] == auto["thinking"] == "as the preset that is taken"
    assert meaning(Mode(auto=True, groups=2), GROUPS)["groups"] == "2 of 8", "it holds in either"


def test_without_groups_fast_runs_half_of_the_experts() -> None:
    for units in (EXPERTS, LONELY):
        modes = builtin_modes(units)
        assert (modes["fast"].experts, modes["fast"].groups, modes["fast"].routed) == (4, None, 4)
        assert modes["fast"].thinking == "off" and modes["deep"].routed is None
        assert "experts" in modes["fast"].description and "experts" in modes["deep"].description
        words = meaning(modes["fast"], units)
        assert words["experts"] == "4 of 8" and "groups" not in words
        assert meaning(modes["deep"], units)["experts"] == "all 8"
        assert meaning(modes["auto"], units)["experts"] == "as the preset that is taken"
        for count, kept in ((1, 1), (7, 7), (8, None), (None, None)):
            assert find_mode({"base": "fast", "experts": count}, modes, units).routed == kept
    assert "experts (lossy)" in meaning(Mode(latency_ms=9, may_shorten=("experts",)), LONELY)["latency"]
    assert builtin_modes(RoutedUnits("experts", 1, least=1))["fast"].routed is None
    assert builtin_modes(RoutedUnits("experts", 1))["fast"].experts == 0
    assert builtin_modes(RoutedUnits("groups", 3))["fast"].groups == 1  # a quarter would be none


@pytest.mark.parametrize(("units", "fields", "says"), [
    (EXPERTS, {"groups": 2}, "groups=2 must be left out: this model has no groups, and "),
    (GROUPS, {"experts": 2}, "experts=2 must be left out: .* in groups, and the field g"),
    (DENSE, {"experts": 2}, "experts=2 must be left out: this model is dense$"),
    (EXPERTS, {"experts": 9}, r"experts=9 is outside 0\.\.8$"),
    (LONELY, {"experts": 0}, r"experts=0 is outside 1\.\.8: no shared expert would"),
    (EXPERTS, {"experts": 2, "groups": 2}, "groups=2 and experts=2 are both given: groups is"),
    (LONELY, {"base": "fast", "groups": 2}, "groups=2 must be left out"),
    (LONELY, {"may_shorten": ["groups"]}, "may_shorten='groups' must be 'experts'"),
    (GROUPS, {"may_shorten": ["experts"]}, "may_shorten='experts' must be 'groups'"),
], ids=str)  # fmt: skip
def test_counts_that_do_not_fit(tmp_path: Path, units: RoutedUnits, fields: dict[str, Any], says: str) -> None:
    refused(rf"^(mode 'x': )?{says}", find_mode, {"name": "x", **fields}, builtin_modes(units), units)
    refused(says, load_modes, presets(tmp_path, {"modes": {"x": fields}}), units)


def test_counts_to_compare() -> None:
    assert RoutedUnits("groups", 12).steps == list(range(13))
    assert LONELY.steps == [1, 2, 3, 4, 5, 6, 7, 8] and EXPERTS.steps[:2] == [0, 1]
    assert RoutedUnits("experts", 22, least=1).steps == [1, 2, 4, 8, 16, 22]
    assert RoutedUnits("experts", 16).steps == [0, 1, 2, 4, 8, 16]
    two = RoutedUnits("experts", 2, least=1)
    assert [units.drafted for units in (LONELY, EXPERTS, two)] == [2, 0, 1]


@pytest.mark.parametrize(("given", "base", "fields"), [
    ({"effort": "none"}, "fast", {"thinking": "off"}),
    ({"effort": "minimal"}, "fast", {"thinking_budget": None}),
    ({"effort": "low"}, "deep", {"thinking_budget": 1024, "answer_room": "auto"}),
    (Mode(effort="medium"), "deep", {"thinking_budget": 4096}),
    ({"effort": "medium", "base": "deep", "thinking_budget": 5}, "deep", {"thinking_budget": 5}),
    ({"effort": "low", "thinking": "off"}, "deep", {"thinking_budget": None}),
    ({"effort": "max", "loop": True}, "deep", {"thinking_budget": None, "loop": Loop()}),
])  # fmt: skip
def test_an_effort_is_a_preset_with_a_budget(given: Any, base: str, fields: Any) -> None:
    found = find_mode(given, builtin_modes(GROUPS), GROUPS)
    assert found.name == f"{base}*" and fields.items() <= dict(found).items()
    with pytest.raises(ValueError, match="^base='fast' and effort='high', which is mode 'deep'"):
        find_mode({"base": "fast", "effort": "high"}, {}, GROUPS)
    refused("^effort='hi' must be 'none'", find_mode, {"effort": "hi"}, {}, GROUPS)
