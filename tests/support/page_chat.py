"""The page in a browser, as a person uses it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from browser import until
from fake_chat import ChatEngine

ENTER, ESCAPE, TAB, SPACE = "\ue007", "\ue00c", "\ue004", "\ue00d"
ALT, CONTROL, SHIFT = "\ue00a", "\ue009", "\ue008"
ARROW_RIGHT, NULL = "\ue014", "\ue000"
ANSWERED = ".answer > .rendered, .answer > .coloured"
EXPECTED = "Failed to load resource"  # how Chromium notes an answer that is an error


class Page:
    """The page as a person sees and uses it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self) -> None:
        self.driver.get(self.url + "/")
        until(lambda: self.all("#mode-list dt"), "the modes are shown")

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        """The text of the last node of a selector, hidden or not."""
        return str(self.all(selector)[-1].get_property("textContent"))

    @property
    def box(self) -> Any:
        return self.driver.find_element("id", "prompt")

    def ask(self, text: str) -> None:
        self.box.send_keys(text, ENTER)
        until(lambda: text in self.text(".asked p"), f"{text!r} is asked")

    def ended(self) -> None:
        until(lambda: not self.all(".running"), "the answer has ended", 60)

    def answered(self, text: str, mode: str = "") -> None:
        """Ask, in a mode where one is named, and wait for the end of the answer."""
        if mode:
            self.mode(mode)
        self.ask(text)
        self.ended()

    def mode(self, name: str) -> None:
        self.driver.find_element("css selector", f'#modes input[value="{name}"]').send_keys(SPACE)

    def press(self, *keys: str) -> None:
        """Keys that go to whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys, NULL)

    def run(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(script, *given)

    def button(self, text: str) -> Any:
        return next(b for b in self.all("button") if b.text.startswith(text))


class Chat(Page):
    """The page, and the made-up engine that answers there."""

    def __init__(self, driver: Any, url: str, engine: ChatEngine) -> None:
        super().__init__(driver, url)
        self.engine = engine


@contextmanager
def fresh(window: Any, url: str, engine: ChatEngine) -> Iterator[Chat]:
    """The page without a past. At the end: no error was logged, and nobody else was called."""
    engine.busy, engine.key, engine.given = 0, None, {}
    engine.bodies.clear()
    window.get(url + "/")
    window.execute_script("turns = []; localStorage.clear(); sessionStorage.clear()")
    window.get_log("browser")
    window.get_log("performance")
    chat = Chat(window, url, engine)
    chat.open()
    yield chat
    loud = [e for e in window.get_log("browser") if e["level"] == "SEVERE"]
    assert [e for e in loud if EXPECTED not in e["message"]] == []
    called = {
        message["params"]["request"]["url"]
        for entry in window.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    }
    assert called and {c for c in called if not c.startswith((url + "/", "data:image/svg+xml"))} == set()
