"""The page in front of the real server and a tiny model."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browser import IN_CHROMIUM, until
from page_chat import ALT, ENTER, ESCAPE, Page
from serve_tools import NAME, open_tiny, served, write_tiny

from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

pytestmark = IN_CHROMIUM
LONG = 20_000
MORE = """
window.more = {ignore_eos: true, speculation: {drafter: "suffix", nodes: 3}}; // the page has no setting for them
const before = bodyFor;
bodyFor = (...given) => ({...before(...given), ...more});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, window: Any) -> Iterator[Page]:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = LONG  # so that there is time to stop an answer
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with open_tiny(folder, kv_memory="64MiB") as llm, served(create_app(LocalEngine(llm, NAME))) as url:
        page = Page(window, url)
        page.open()
        page.run(MORE)
        yield page


def settle(page: Page, bias: dict[str, int], **settings: Any) -> None:
    page.run("preferences.settings = arguments[0]; more.logit_bias = arguments[1]", settings, bias)


def last_answer(page: Page) -> Any:
    return page.run("return turns.at(-1).answers.at(-1)")


def test_an_answer_in_a_mode_of_the_model_with_its_tokens_and_figures(page: Page) -> None:
    modes = {mode.get_attribute("value") for mode in page.all("#modes input")}
    assert {"fast", "deep", "auto", "brief"} <= modes
    page.run("setColours(true)")
    # one token again and again: drafts are accepted
    settle(page, {"33": 100}, max_tokens=120, temperature=0)
    page.answered("the quick brown fox", "fast")
    answer = last_answer(page)
    assert answer["problem"] == "" and answer["metrics"]["mode"] == "fast"
    assert answer["usage"]["completion_tokens"] == answer["tokens"] == len(answer["marks"]) == 120
    assert sum(mark // 16 for mark in answer["marks"]) == len(answer["text"])
    assert page.text(".answer > .coloured") == answer["text"]
    spans = {span.get_attribute("class") for span in page.all(".answer > .coloured span")}
    assert {"s-target", "s-suffix"} <= spans and answer["metrics"]["tokens_per_step"] > 1
    strip = page.text(".strip")
    assert "tokens per step" in strip and "acceptance" in strip and "prompt cached" in strip


def test_its_thought_is_stopped(page: Page) -> None:
    settle(page, {"4": -100}, max_tokens=15_000, temperature=1)  # the model itself does not end it
    page.mode("deep")
    page.box.send_keys("think on", ENTER)
    until(lambda: page.run("return running?.view.answer.thoughtTokens > 20"), "it thinks")
    page.press(ALT, "t")
    until(lambda: page.run("return running?.view.answer.text"), "it answers")
    page.press(ESCAPE)
    until(lambda: page.run("return !running"), "it is over")
    assert last_answer(page)["metrics"]["thinking_ended"] == "caller"
    assert "stopped by you" in page.text(".thought summary")


def test_the_servers_figures_are_shown(page: Page) -> None:
    settle(page, {}, max_tokens=20)
    page.answered("once more", "fast")
    page.driver.find_element("id", "tab-server").click()
    until(lambda: len(page.all("#cards .card")) == 7, "there are figures")
    cards = page.text("#cards")
    page.driver.find_element("id", "tab-chat").click()
    assert "KV pages" in cards and "NaN" not in cards and "suffix" in cards and "fast" in cards
