"""Pictures of the page for the docs: `python tests/support/page_pictures.py docs`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from browser import appear, browser, until
from fake_chat_server import FakeEngine, create_fake
from PIL import Image
from serve_tools import served

ENTER = "\ue007"
COLOURS = 128  # of a picture's palette, which keeps it small
SAMPLES = """
const done = arguments[0];
(async () => {
  for (let i = 0; i < 120; i++) {
    const stats = await (await fetch("/v1/stats")).json();
    samples.push({ at: performance.now() + (i - 120) * 2000, stats });
  }
  drawServer();
  done();
})();
"""


def main(folder: Path) -> None:
    """A conversation in both themes, coloured and on a phone, and the server's tab."""
    engine = FakeEngine()
    with (
        served(create_fake(engine)) as url,
        tempfile.TemporaryDirectory() as profile,
        browser(Path(profile)) as driver,
    ):
        appear(driver, 1180, 860, "light")
        driver.get(url + "/")
        until(lambda: driver.find_elements("css selector", "#mode-list dt"), "it is loaded")
        _ask(driver, "auto", "How many comparisons does a binary search need?")
        driver.execute_script("document.getElementById('scroll').scrollTop = 0")
        _save(driver, folder / "page-chat-light.png")
        driver.execute_script("setColours(true); document.querySelector('.thought').open = true")
        appear(driver, 1180, 860, "dark")
        driver.execute_script("document.getElementById('scroll').scrollTop = 0")
        _save(driver, folder / "page-chat-dark.png")
        driver.execute_script("setColours(false); document.querySelector('.thought').open = false")
        appear(driver, 375, 720, "light")
        driver.execute_script("follow(true)")
        _save(driver, folder / "page-phone.png")
        appear(driver, 1180, 860, "light")
        driver.execute_async_script(SAMPLES)
        driver.find_element("id", "tab-server").click()
        until(lambda: engine.calls > 120, "the page asks by itself")
        _save(driver, folder / "page-server.png")


def _ask(driver: Any, mode: str, text: str) -> None:
    driver.find_element("css selector", f'#modes input[value="{mode}"]').send_keys(" ")
    driver.find_element("id", "prompt").send_keys(text, ENTER)
    until(lambda: driver.find_elements("css selector", ".running"), "it runs")
    until(lambda: not driver.find_elements("css selector", ".running"), "it ends")


def _save(driver: Any, path: Path) -> None:
    driver.execute_async_script("setTimeout(arguments[0], 300)")
    driver.save_screenshot(str(path))
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
