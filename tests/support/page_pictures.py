"""Pictures of the page for the docs, of the real server and built-in models:
`python tests/support/page_pictures.py docs`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import appear, browser, until
from PIL import Image
from serve_tools import served

from fastslow.llm import LLM
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.http.app import create_app

COLOURS = 128  # of a picture's palette, which keeps it small
QUESTION = """Rewrite this function with a docstring, then list in three points what it does:

def find(values, wanted):
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low"""
SMALL_TALK = ("Name three rivers.", "Write a haiku about rain.", "What is a prime number?")
POINTS = "Explain in three short points what a hash table is."
SUM = "What is 327 + 486?"


@contextmanager
def page_of(model: str) -> Iterator[Any]:
    """A browser that shows the page of a server with this model."""
    with (
        LLM(model, progress=False) as llm,
        served(create_app(LocalEngine(llm, model))) as url,
        tempfile.TemporaryDirectory() as profile,
        browser(Path(profile)) as driver,
    ):
        appear(driver, 1180, 860, "light")
        driver.get(url + "/")
        until(lambda: driver.find_elements("css selector", "#mode-list dt"), "it is loaded")
        yield driver


def chat_and_figures(folder: Path) -> None:
    """A conversation, light and as colours in the dark, and the server's tab."""
    with page_of("smollm2-moge") as driver:
        driver.execute_script("preferences.settings = {temperature: 0, max_tokens: 300}")
        driver.find_element("id", "tab-server").click()
        for text in (*SMALL_TALK, *SMALL_TALK[:2]):
            for mode in ("fast", "auto"):
                _ask(driver, mode, text)
                time.sleep(2)
        _save(driver, folder / "page-server.png")
        driver.find_element("id", "tab-chat").click()
        driver.execute_script("turns = []; drawTurns()")
        _ask(driver, "auto", POINTS)
        driver.execute_script("document.getElementById('prompt').focus()")
        _save(driver, folder / "page-chat-light.png")
        driver.execute_script("turns = []; drawTurns()")
        _ask(driver, "deep", QUESTION)
        appear(driver, 1180, 860, "dark")
        driver.execute_script("setColours(true)")
        driver.execute_script("document.querySelector('.answer').scrollIntoView()")
        driver.execute_script(
            "const box = document.querySelector('.answer > .coloured'); box.focus();"
            "for (let i = 0; i < 30; i++) walkTokens(box, 1)"
        )
        _save(driver, folder / "page-chat-dark.png")


def thoughts(folder: Path) -> None:
    """A thought, on a phone."""
    with page_of("abacus") as driver:
        appear(driver, 375, 720, "light")
        driver.execute_script("preferences.settings = {temperature: 0}")
        _ask(driver, "auto", SUM)
        driver.execute_script("[...document.querySelectorAll('.thought')].at(-1).open = true")
        _save(driver, folder / "page-phone.png")


def _ask(driver: Any, mode: str, text: str) -> None:
    """Ask in a mode, and wait for the end."""
    driver.execute_script(
        "preferences.mode = arguments[0]; drawModes();"
        "document.getElementById('prompt').value = arguments[1]; send()",
        mode,
        text,
    )
    until(lambda: driver.execute_script("return !running"), "it ends", 120)


def _save(driver: Any, path: Path) -> None:
    driver.execute_async_script("setTimeout(arguments[0], 2500)")
    driver.save_screenshot(str(path))
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    chat_and_figures(Path(sys.argv[1]))
    thoughts(Path(sys.argv[1]))
