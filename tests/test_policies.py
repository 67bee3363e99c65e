"""Modes as presets, and how far to draft."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastslow.engine.params import Mode, SamplingParams, Speculation
from fastslow.engine.types import Load, Plan, Tree
from fastslow.policies.length import FixedLength
from fastslow.policies.modes import builtin_modes, find_mode, load_modes


def test_a_fixed_length_plans_the_same_in_the_requests_own_groups() -> None:
    policy = FixedLength(5)
    for groups in (None, 0, 3):
        request: Any = SimpleNamespace(groups=groups)
        assert policy.plan(request, Load(1, 0)) == Plan(5, groups)
        policy.record(Tree.chain([1, 2]), [0])
        assert policy.survival(Tree.chain([1, 2])) is None


def test_fast_runs_a_quarter_of_the_groups_and_deep_all() -> None:
    modes = builtin_modes(8)
    assert (modes["fast"].groups, modes["fast"].thinking) == (2, "off")
    assert (modes["deep"].groups, modes["deep"].thinking) == (None, "on")
    assert builtin_modes(0)["fast"].groups is None, "a dense model has no groups to leave out"


def presets(folder: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "fastslow.json").write_text(text, "utf-8")
    return folder


def test_without_a_file_there_are_the_builtin_ones(tmp_path: Path) -> None:
    assert load_modes(tmp_path, 8) == builtin_modes(8)


def test_a_checkpoint_changes_and_adds_presets(tmp_path: Path) -> None:
    folder = presets(
        tmp_path,
        {
            "other": "fields are another program's",
            "modes": {
                "fast": {"groups": 4},
                "careful": {
                    "thinking": "on",
                    "groups": 8,
                    "sampling": {"temperature": 0.5, "max_tokens": 9},
                    "speculation": {"drafter": "self", "nodes": 2},
                },
            },
        },
    )
    modes = load_modes(folder, 8)
    assert set(modes) == {"fast", "deep", "careful"}
    assert modes["fast"] == builtin_modes(8)["fast"].model_copy(update={"groups": 4})
    careful = modes["careful"]
    assert careful.name == "careful"
    assert careful.sampling == SamplingParams(temperature=0.5, max_tokens=9)
    assert careful.speculation == Speculation(drafter="self", nodes=2)
    assert find_mode("careful", modes, 8).groups is None, "all 8 of 8 is written as None"


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("{", r"fastslow.json cannot be read: Expecting"),
        ("[]", r"fastslow.json cannot be read: .*dictionary"),
        ({"modes": 5}, r"modes=5 must be a valid dictionary$"),
        ({"modes": {"x": {"grups": 1}}}, r"field 'grups' is unknown; did you mean 'groups'\?$"),
        ({"modes": {"x": {"groups": 9}}}, r"mode 'x': groups=9 is outside 0\.\.8$"),
        ({"modes": {"x": {"sampling": {"top_p": 7}}}}, r"sampling\.top_p=7 must be less than"),
        ({"modes": {"x": {"speculation": {"nodes": "4"}}}}, r"speculation\.nodes='4' must be"),
    ],
    ids=str,
)
def test_a_broken_file_is_refused(tmp_path: Path, content: object, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern) as caught:
        load_modes(presets(tmp_path, content), 8)
    assert "\n" not in str(caught.value)


def test_modes_are_found_by_name_or_given() -> None:
    modes = builtin_modes(8)
    assert find_mode("fast", modes, 8) is modes["fast"]
    own = Mode(name="mine", groups=3)
    assert find_mode(own, modes, 8) is own
    with pytest.raises(ValueError, match=r"^mode='fats' is unknown; did you mean 'fast'\?$"):
        find_mode("fats", modes, 8)
    with pytest.raises(ValueError, match=r"must be a name or a Mode, not int$"):
        find_mode(5, modes, 8)  # type: ignore[arg-type]
