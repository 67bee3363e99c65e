"""A long and fast answer stays smooth, rendered, coloured, or as one long code block, and fits a phone."""

from __future__ import annotations

from typing import Any

import pytest
from browser import appear, missing, until
from fake_chat import ChatEngine

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


@pytest.mark.parametrize(
    ("message", "colours"),
    [(f"long {TOKENS} {RATE}", False), (f"wall {TOKENS} {RATE}", True), ("code", False)],
    ids=["prose", "one line", "code"],
)
def test_a_long_answer_stays_smooth(
    window: Any, page: tuple[str, ChatEngine], message: str, colours: bool
) -> None:
    times = frame_times(window, page[0], message, colours)
    assert len(times) > LEAST_FRAMES * sum(times) / 1000
    assert max(times) < LONGEST
    end = "const b = document.getElementById('scroll'); return b.scrollHeight - b.scrollTop - b.clientHeight"
    assert window.execute_script(end) < 48  # its end is in view
    shown = window.execute_script(
        "return document.querySelector('.answer > div').textContent.length"
    )
    said = window.execute_script("return turns[0].answers[0].text.length")
    assert shown >= 0.9 * said  # Markdown's marks are not shown


def test_nothing_is_wider_than_a_phone(window: Any, page: tuple[str, ChatEngine]) -> None:
    for colours in (False, True):
        frame_times(window, page[0], "Explain binary search", colours)
        appear(window, 375, 720, "light")
        wide = window.execute_script(
            "return [...document.querySelectorAll('body *')].filter(n => n.getClientRects().length &&"
            " !n.closest('.scroller, pre, .unseen') && n.getBoundingClientRect().right > 376)"
            ".map(n => n.tagName + '.' + n.className)"
        )
        appear(window, 1280, 860, "light")
        assert wide == []
