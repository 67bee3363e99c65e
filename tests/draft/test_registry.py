"""`DRAFTERS` is the one place of a drafter: what is written about drafters comes from it."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from serve_tools import open_tiny, write_tiny

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.base import BaseDrafter
from fastslow.draft.registry import DRAFTERS, DrafterKind
from fastslow.engine.types import RequestView, Tree
from fastslow.serve.api.fields import SharedFields
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine
from fastslow.tools.cli.answering.answer_options import AnswerOptions

ROOT = Path(__file__).parents[2]
CAUSE = "nobody says everything twice"
SIXTY = SamplingParams(max_tokens=60, ignore_eos=True)


class Echo(BaseDrafter):
    """Drafts the last token of the text, again and again."""

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return [Tree.chain(request.tokens[-1:] * n) for request, n in zip(batch, nodes)]


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    DRAFTERS["echo2"] = DrafterKind(lambda settings, deps: Echo(), help="the last token", likely_cause=CAUSE)
    with open_tiny(write_tiny(tmp_path)) as llm:
        yield llm
    del DRAFTERS["echo2"]


def test_an_entry_is_all_that_a_drafter_needs_in_python(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr("fastslow.request.choice.POOR", 2.0)  # whatever is accepted is hardly any
    plain = llm.generate("one two", SIXTY, speculation="off")
    own = Speculation(drafter="echo2", nodes=4)
    for wish in (own, "suffix|echo2", "echo2+ngram", own):
        out = llm.generate("one two", SIXTY, speculation=wish)
        assert out.token_ids == plain.token_ids
    assert out.metrics.drafter == "echo2" and out.metrics.drafted >= 100
    (said,) = [line for line in logged if line.startswith("drafter echo2: ")]
    assert f"Probably {CAUSE}. Try" in said
    with pytest.raises(ValueError, match=r"unknown; did you mean 'echo2'\?$"):
        llm.generate("one two", SIXTY, speculation="ecko2")


def test_an_entry_is_all_that_a_drafter_needs_over_http(llm: LLM) -> None:
    client = TestClient(create_app(LocalEngine(llm, "tiny")), base_url="http://localhost")
    body = {"model": "tiny", "prompt": "one two", "max_tokens": 8}
    for wish in ("echo2", "echo2+suffix", {"drafter": "echo2", "nodes": 2}):
        answer = client.post("/v1/completions", json={**body, "speculation": wish})
        assert answer.status_code == 200, answer.text
    answer = client.post("/v1/completions", json={**body, "speculation": "echo3"})
    assert answer.status_code == 400 and "did you mean 'echo2'" in answer.text


def rows(page: str) -> dict[str, str]:
    """The table of drafters on a page: names, and where their drafts come from."""
    found = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    return dict(found[[name for name, _ in found].index(next(iter(DRAFTERS))) :])


def test_pages_the_command_line_and_the_server_list_the_registry() -> None:
    assert {n: kind.help for n, kind in DRAFTERS.items()}.items() <= rows("README.md").items()
    assert DRAFTERS.keys() <= rows("docs/guide/drafting.md").keys()
    field = SharedFields.model_json_schema()["properties"]["speculation"]["description"]
    option = AnswerOptions.model_fields["speculation"].description
    assert all(f"{name} ({kind.help})" in field for name, kind in DRAFTERS.items())
    assert option is not None and ", ".join(DRAFTERS) in option
