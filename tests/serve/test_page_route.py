"""The page as a file: it loads nothing, its policy fits it, and browsers get it again only where it changed."""

import asyncio
import base64
import hashlib
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fastapi.testclient import TestClient
from metrics_client import client

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode
from fastslow.policies.modes import builtin_modes
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.keys import KeyLimits, KeyRing, add_key
from fastslow.serve.app import create_app
from fastslow.serve.page import route

TEXT = files("fastslow.serve.page").joinpath("index.html").read_text("utf-8")
SCRIPTS = re.findall(r"<script>(.*?)</script>", TEXT, re.DOTALL)
MOST_BYTES = 200_000


class Hanging(FakeEngine):
    """An engine that never says its figures."""

    async def stats(self) -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("most", [8, 0])
def test_people_read_plain_words_of_the_modes(most: int, thinks: bool) -> None:
    modes = builtin_modes(RoutedUnits("groups", most, 0), thinks)
    said = [mode.description for mode in modes.values()]
    assert not re.search(r"\w[._]\w|shared|group|latency", " ".join(said))
    assert thinks or not re.search("thinking|thinks first", " ".join(said))


class Named(FakeEngine):
    """A model with a mode that nobody described, and one that a key may use."""

    @property
    def card(self) -> ModelCard:
        support = Mode(name="support", thinking="on", thinking_budget=300, loop=True)
        modes = builtin_modes(RoutedUnits("groups", 4)) | {"support": support}
        fields = {name: mode.model_dump(mode="json") for name, mode in modes.items()}
        return replace(super().card, modes=fields)


def test_it_begins_in_the_servers_default_mode_and_a_key_sees_its_own(tmp_path: Path) -> None:
    said = client(Named(), settings=ServerSettings(default_mode="support")).get("/v1/page").json()
    assert (said["model"], said["default_mode"], said["thinks"]) == ("tiny", "support", True)
    line = "thinks first; all 4 groups of experts; at most 300 tokens of thought; "
    line += "ended where a thought goes round in circles"
    assert said["modes"]["support"] == {"description": line, "thinking_budget": 300}
    assert client(Named()).get("/v1/page").json()["default_mode"] == "deep"
    secret = add_key(tmp_path / "keys.json", "bot", KeyLimits(modes=["support", "fast"]))
    asking = TestClient(create_app(Named(), keys=KeyRing(tmp_path / "keys.json")))
    assert asking.get("/v1/page").status_code == 401
    said = asking.get("/v1/page", headers={"Authorization": f"Bearer {secret}"}).json()
    assert list(said["modes"]) == ["fast", "support"] and said["default_mode"] == "fast"


def test_it_is_small_and_loads_nothing() -> None:
    assert len(TEXT.encode()) < MOST_BYTES
    without_data = re.sub(r'"data:image/svg\+xml,[^"]*"', "", TEXT)
    addresses = set(re.findall(r"\b(?:https?|wss?):/*[^\s\"'`)]*", without_data))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a namespace, which nobody loads
    assert not re.search(r"@import|\burl\(|<(?:link rel=\"(?!icon)|img|iframe|object|embed)\b", TEXT)
    assert not re.search(r"<script[^>]+src|\bimport\s*\(|\bimport\s+[\w{*]", TEXT)


RISKY = "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval(|new Function|DOMParser|srcdoc"


def test_no_text_can_become_code_and_the_policy_allows_its_own_scripts_only() -> None:
    assert not [risky for risky in RISKY.split("|") if risky in "".join(SCRIPTS)]
    markup = re.sub(r"<(script|style)>.*?</\1>", "", TEXT, flags=re.DOTALL)
    assert not re.search(r"<[^>]*\s(?:on[a-z]+|style)=", markup)
    policy = client().get("/").headers["content-security-policy"]
    parts = {name: rest for name, _, rest in (p.partition(" ") for p in policy.split("; "))}
    own = {f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in SCRIPTS}
    assert set(parts["script-src"].split()) == own
    assert parts["default-src"] == parts["base-uri"] == parts["frame-ancestors"] == "'none'"
    assert parts["connect-src"] == "'self'" and "unsafe" not in policy and "*" not in policy


def test_a_known_page_is_not_sent_again() -> None:
    asking = client()
    first = asking.get("/")
    assert first.status_code == 200 and first.headers["content-type"] == "text/html; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache" and first.content == TEXT.encode()
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = asking.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"") and again.headers["etag"] == etag
    assert asking.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_an_engine_without_figures_is_not_waited_for_and_sampling_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "PATIENCE", 0.05)
    assert client().get("/v1/stats").json()["waiting"] == 1
    assert client().get("/v1/stats").json()["age_seconds"] == 0.0
    answer = client(Hanging()).get("/v1/stats")
    assert answer.status_code == 503 and "no figures within 0.05 seconds" in answer.text
    asking = client(settings=ServerSettings(temperature=0.3))
    assert asking.get("/v1/models").json()["data"][0]["sampling"] == {"temperature": 0.3}
    assert asking.get("/v1/page").json()["temperature"] == 0.3
