"""The page in front of the real server and a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browser import missing, until
from serve_tools import NAME, open_tiny, served, write_tiny

from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.http.app import create_app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"no browser: {missing()}"),
]

LONG = 20_000
MORE = """
window.more = {ignore_eos: true}; // fields that the page has no setting for
const before = bodyFor;
bodyFor = (...given) => ({...before(...given), ...more});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, window: Any) -> Iterator[Any]:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = LONG  # so that there is time to stop an answer
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with (
        open_tiny(folder, kv_memory="64MiB") as llm,
        served(create_app(LocalEngine(llm, NAME))) as url,
    ):
        driver = window
        driver.get(url + "/")
        until(lambda: driver.find_elements("css selector", "#mode-list dt"), "it is loaded")
        driver.execute_script(MORE)
        yield driver


def ask(page: Any, mode: str, text: str, **settings: Any) -> dict[str, Any]:
    """The last answer's data, after it has ended."""
    page.execute_script("preferences.settings = arguments[0]", settings)
    page.find_element("css selector", f'#modes input[value="{mode}"]').send_keys(" ")
    page.find_element("id", "prompt").send_keys(text, "\ue007")
    until(lambda: page.execute_script("return turns.length && !running"), "it is answered", 60)
    answer: dict[str, Any] = page.execute_script("return turns.at(-1).answers.at(-1)")
    assert answer["problem"] == ""
    return answer


def sources(page: Any) -> set[str]:
    spans = page.find_elements("css selector", ".turn:last-child .answer > .coloured span")
    return {span.get_attribute("class") for span in spans}


def test_every_mode_of_the_model_can_be_chosen(page: Any) -> None:
    names = [i.get_attribute("value") for i in page.find_elements("css selector", "#modes input")]
    assert {"fast", "deep", "auto", "brief"} <= set(names)


def test_an_answer_with_its_tokens_and_figures(page: Any) -> None:
    page.execute_script("setColours(true)")
    page.execute_script(
        "more.logit_bias = {33: 100}"
    )  # one token again and again: drafts are accepted
    answer = ask(page, "fast", "the quick brown fox", max_tokens=120, temperature=0)
    page.execute_script("delete more.logit_bias")
    assert answer["usage"]["completion_tokens"] == answer["tokens"] == len(answer["marks"]) == 120
    assert sum(mark // 16 for mark in answer["marks"]) == len(answer["text"])
    assert answer["metrics"]["mode"] == "fast"
    assert "s-target" in sources(page)
    text = page.find_element("css selector", ".turn:last-child .answer > .coloured")
    assert text.get_property("textContent") == answer["text"]
    assert "s-suffix" in sources(page)
    assert answer["metrics"]["tokens_per_step"] > 1
    strip = page.find_element("css selector", ".turn:last-child .strip").text
    assert "tokens per step" in strip and "acceptance" in strip and "prompt cached" in strip


def test_its_thought_is_stopped(page: Any) -> None:
    page.execute_script("preferences.settings = {max_tokens: 15000, temperature: 1}")
    page.find_element("css selector", '#modes input[value="deep"]').send_keys(" ")
    page.execute_script("more.logit_bias = {4: -100}")  # the model itself does not end it
    page.find_element("id", "prompt").send_keys("think on", "\ue007")
    until(
        lambda: page.execute_script("return running?.view.answer.thoughtTokens > 20"), "it thinks"
    )
    page.find_element("id", "prompt").send_keys("\ue00a", "t")
    until(lambda: page.execute_script("return running?.view.answer.text"), "it answers")
    page.find_element("id", "prompt").send_keys("\ue000", "\ue00c")
    until(lambda: page.execute_script("return !running"), "it is over")
    page.execute_script("delete more.logit_bias")
    assert page.execute_script("return turns.at(-1).answers[0].metrics.thinking_ended") == "caller"
    summary = page.find_element("css selector", ".turn:last-child .thought summary")
    assert "stopped by you" in summary.get_property("textContent")


def test_the_servers_figures_are_shown(page: Any) -> None:
    ask(page, "fast", "once more", max_tokens=20)
    page.find_element("id", "tab-server").click()
    until(lambda: len(page.find_elements("css selector", "#cards .card")) == 7, "there are figures")
    cards = page.find_element("id", "cards").text
    page.find_element("id", "tab-chat").click()
    assert "KV pages" in cards and "NaN" not in cards
    assert "suffix" in cards and "fast" in cards
