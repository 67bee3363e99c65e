"""A long and fast answer stays smooth, rendered, coloured, or as one long code block, and fits a phone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import appear, browser, missing, until
from fake_chat_server import FakeEngine, create_fake
from serve_tools import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"no browser: {missing()}"),
]
TOKENS, RATE = 10_000, 2000
LEAST_FRAMES = 8  # a second, on a machine that does other work; it is 60 on one that does not
LONGEST = 1000  # milliseconds
WATCH = """
window.times = []; let before = performance.now();
(function watch(now) { times.push(now - before); before = now; requestAnimationFrame(watch); })(before);
"""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    with (
        served(create_fake(FakeEngine())) as url,
        browser(tmp_path_factory.mktemp("profile")) as driver,
    ):
        yield driver, url


def frame_times(driver: Any, url: str, message: str, colours: bool) -> list[float]:
    """Milliseconds between frames while an answer comes."""
    driver.get(url + "/")
    driver.execute_script("turns = []; localStorage.clear()")
    driver.get(url + "/")
    until(lambda: driver.find_elements("css selector", "#mode-list dt"), "it is loaded")
    driver.execute_script(f"setColours({str(colours).lower()}); chooseMode(0)")
    driver.execute_script(WATCH)
    driver.find_element("id", "prompt").send_keys(message, "\ue007")
    until(lambda: driver.find_elements("css selector", ".running"), "it runs")
    until(lambda: not driver.find_elements("css selector", ".running"), "it ends", 120)
    times: list[float] = driver.execute_script("return times.slice(1)")
    return times


@pytest.mark.parametrize("colours", [False, True], ids=["rendered", "coloured"])
@pytest.mark.parametrize(
    "message",
    [f"long {TOKENS} {RATE}", f"wall {TOKENS} {RATE}", "code"],
    ids=["prose", "one line", "code"],
)
def test_a_long_answer_stays_smooth(
    window: tuple[Any, str], message: str, colours: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    times = frame_times(*window, message, colours)
    seconds = sum(times) / 1000
    with capsys.disabled():
        middle = sorted(times)[len(times) // 2]
        over = sum(t > 50 for t in times)
        print(
            f"\n{message}, {'coloured' if colours else 'rendered'}: {len(times)} frames, median "
            f"{middle:.1f} ms, {over} above 50 ms, longest {max(times):.0f} ms"
        )
    assert len(times) > LEAST_FRAMES * seconds
    assert max(times) < LONGEST
    driver, _ = window
    end = "const b = document.getElementById('scroll'); return b.scrollHeight - b.scrollTop - b.clientHeight"
    assert driver.execute_script(end) < 48  # its end is in view
    shown = driver.execute_script(
        "return document.querySelector('.answer > div').textContent.length"
    )
    said = driver.execute_script("return turns[0].answers[0].text.length")
    assert shown >= 0.9 * said  # Markdown's marks are not shown


def test_nothing_is_wider_than_a_phone(window: tuple[Any, str]) -> None:
    driver, url = window
    for colours in (False, True):
        frame_times(driver, url, "Explain binary search", colours)
        appear(driver, 375, 720, "light")
        wide = driver.execute_script(
            "return [...document.querySelectorAll('body *')].filter(n => n.getClientRects().length &&"
            " !n.closest('.scroller, pre, .unseen') && n.getBoundingClientRect().right > 376)"
            ".map(n => n.tagName + '.' + n.className)"
        )
        appear(driver, 1280, 860, "light")
        assert wide == []
