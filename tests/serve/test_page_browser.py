"""The page in Chromium, in front of a server that makes up answers: what a person does and sees, on a phone, too."""

from typing import Any

import pytest
from browser import IN_CHROMIUM, appear, until
from fake_chat import ANSWER, SOURCES
from page_chat import ALT, ANSWERED, ARROW_RIGHT, CONTROL, ENTER, ESCAPE, SHIFT, TAB, Chat

pytestmark = IN_CHROMIUM
TOKENS, RATE = 10_000, 2000
LEAST_FRAMES = 8  # a second, on a machine that does other work; it is 60 on one that does not
LONGEST = 1000  # milliseconds
WATCH = """
window.times = []; let before = performance.now();
(function watch(now) { times.push(now - before); before = now; requestAnimationFrame(watch); })(before);
"""


@pytest.mark.slow
def test_a_question_is_answered(chat: Chat) -> None:
    chat.mode("deep")
    chat.ask("Explain binary search")
    until(lambda: chat.all(".thought[open]"), "the thought is open while it is thought")
    chat.ended()
    assert not chat.all(".thought[open]")
    summary = chat.text(".thought summary")
    assert summary.startswith("Thought for ") and "47 tokens" in summary
    assert chat.text(".answer pre code").startswith("def find(values: list[int]")
    assert [cell.text for cell in chat.all(".answer th")] == ["entries", "comparisons"]
    assert len(chat.all(".answer li")) == 5
    assert "96 of 120" in chat.text(".strip") and "42 ms" in chat.text(".strip")
    assert "1: 84%" in chat.all(".strip .bars")[-1].get_attribute("aria-label")
    assert "Mode deep, as you chose." in chat.text(".why")
    assert "Drafts accepted: suffix 44 of 96, head 43 of 61." in chat.text(".why")
    body = chat.engine.bodies[-1]
    assert body["mode"] == "deep" and body["messages"] == [{"role": "user", "content": "Explain binary search"}]
    assert body["stream_options"] == {"include_usage": True, "include_sources": True}


def test_what_was_said_is_sent_and_thoughts_are_not(chat: Chat) -> None:
    chat.answered("echo one", "deep")
    chat.answered("echo two", "fast")
    assert chat.engine.bodies[-1]["messages"] == [
        {"role": "user", "content": "echo one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "echo two"},
    ]
    assert chat.engine.bodies[-1]["mode"] == "fast"


def test_escape_stops_and_keeps_what_came(chat: Chat) -> None:
    chat.mode("fast")
    chat.ask("slow")
    until(lambda: len(chat.text(".answer .rendered")) > 40, "some text has come")
    chat.press(ESCAPE)
    chat.ended()
    assert "Stopped." in chat.text(".why") and len(chat.text(".answer .rendered")) < 1000
    assert "96 of 120" in chat.text(".strip")  # the last figures still came
    assert not chat.all(".problem:not([hidden])")


def test_a_thought_is_stopped(chat: Chat) -> None:
    chat.mode("deep")
    chat.ask("think")
    until(lambda: chat.all("#stop-thinking:not([hidden])"), "thinking can be stopped")
    assert not chat.all(".thought progress:not([hidden])"), "there is no budget"
    chat.button("Answer now").click()
    chat.ended()
    assert chat.text(".answer .rendered") == "So it is." and "stopped by you" in chat.text(".thought summary")
    assert not chat.all("#stop-thinking:not([hidden])")


def test_it_begins_in_the_servers_default_mode(chat: Chat) -> None:
    said = "Ask something. Fast answers at once, deep thinks first, and you choose each time."
    assert chat.text("#greeting") == said
    chat.answered("echo yes")
    assert chat.engine.bodies[-1]["mode"] == "deep"
    chat.run("card.thinks = false; drawModes()")
    assert chat.text("#greeting") == "Ask something."
    assert len(chat.all("[data-thinks][hidden]")) == 2, "nor is there a budget to set"


def test_auto_says_what_it_chose_and_why(chat: Chat) -> None:
    chat.answered("echo yes", "auto")
    assert "Mode deep: the question asks for a proof." in chat.text(".why")
    assert "chosen by auto" in chat.text(".answer header")


def test_two_modes_are_compared_and_one_is_continued(chat: Chat) -> None:
    chat.answered("echo same", "deep")
    chat.button("Compare with fast").click()
    until(lambda: len(chat.all(".answer")) == 2, "both answers stand there")
    chat.ended()
    assert [head.text.split()[0] for head in chat.all(".answer > header")] == ["deep", "fast"]
    assert [body["mode"] for body in chat.engine.bodies] == ["deep", "fast"]
    assert chat.engine.bodies[0]["messages"] == chat.engine.bodies[1]["messages"]
    assert len(chat.all(".answer[data-chosen]")) == 1
    chat.button("Go on from this answer").click()
    assert chat.all(".answer")[0].get_attribute("data-chosen") is not None


def test_a_reload_keeps_the_conversation_and_the_settings(chat: Chat) -> None:
    chat.mode("deep")
    chat.run("setColours(true)")
    chat.answered("Explain binary search")
    before = chat.text(".answer .coloured")
    spans = len(chat.all(".answer .coloured span"))
    strip, summary = chat.text(".strip"), chat.text(".thought summary")
    chat.open()
    assert chat.text(".asked p") == "Explain binary search"
    assert chat.text(".answer .coloured") == before == ANSWER
    assert len(chat.all(".answer .coloured span")) == spans > 100
    assert (chat.text(".strip"), chat.text(".thought summary")) == (strip, summary)
    assert chat.driver.find_element("css selector", '#modes input[value="deep"]').is_selected()
    chat.answered("echo on")
    assert chat.engine.bodies[-1]["messages"][1]["content"] == ANSWER


def test_a_reload_in_the_middle_keeps_what_came(chat: Chat) -> None:
    chat.ask("slow")
    until(lambda: len(chat.text(".answer .rendered")) > 40, "some text has come")
    chat.open()
    assert len(chat.text(".answer .rendered")) > 40 and "Interrupted" in chat.text(".why")


def test_a_cleared_conversation_can_be_had_back(chat: Chat) -> None:
    chat.answered("echo old")
    chat.press(CONTROL, "k")
    assert not chat.all(".turn") and chat.run("return localStorage.getItem('fastslow.turns')") == "[]"
    chat.button("Undo").click()
    assert chat.text(".asked p") == "echo old"


def test_colours_say_where_tokens_came_from(chat: Chat) -> None:
    chat.mode("fast")
    chat.press(ALT, "c")
    chat.answered("echo one two three four five six seven eight nine ten")
    kinds = [span.get_attribute("class") for span in chat.all(".answer .coloured span")]
    assert kinds == [f"s-{name}" for name in SOURCES]
    assert [s.text for s in chat.all("#legend > span")] == list(dict.fromkeys(SOURCES))
    chat.run("document.querySelectorAll('.coloured')[1].focus()")
    for _ in range(3):
        chat.press(ARROW_RIGHT)
    assert chat.text("#tip") == "suffix: drafted from earlier text"
    assert chat.text("#status").startswith("three, suffix")
    chat.press(ALT, "c")
    assert not chat.all(".coloured") and chat.text(".answer .rendered").startswith("one two three")


def test_keys_are_enough(chat: Chat) -> None:
    chat.box.click()
    chat.press(ALT, "1")
    chat.press("a", SHIFT, ENTER)
    chat.press("b")
    assert chat.box.get_property("value") == "a\nb"
    chat.press(TAB)  # to the modes
    chat.press("2")
    assert chat.run("return preferences.mode") == "deep"
    chat.press(ARROW_RIGHT)
    assert chat.run("return preferences.mode") == "auto"
    assert chat.run("return getComputedStyle(document.activeElement.nextElementSibling).outlineStyle") == "solid"
    chat.press(TAB, TAB)
    assert chat.run("return document.activeElement.id") == "send"
    chat.press(ENTER)
    chat.ended()
    assert chat.text(".asked p") == "a\nb" and chat.engine.bodies[-1]["mode"] == "auto"


def cards_of(chat: Chat, **given: Any) -> str:
    """The text of the cards where the server gives these figures."""
    chat.engine.given = given
    chat.driver.find_element("id", "tab-server").click()
    until(lambda: chat.all("#cards .card"), "there are figures")
    cards = chat.text("#cards")
    assert "NaN" not in cards and "undefined" not in cards
    return cards


def test_missing_figures_are_explained(chat: Chat) -> None:
    cards = cards_of(chat, running=1, waiting=0, drafters={}, prompt_tokens=0)
    assert "Nothing was drafted yet." in cards and "This server does not count requests by mode." in cards
    assert "No prompt has run yet." in cards


def test_replicas_have_a_table(chat: Chat) -> None:
    one = {"running": 2, "waiting": 1, "pages": 80, "pages_used": 20, "tokens": 1234}
    each = {f"r{n:02}": one for n in range(25)} | {"<b>bad</b>": None}
    card = cards_of(chat, running=1, replicas=each, replicas_gone=3)
    assert "r00" in card and "r19" in card and "r20" not in card and "bad" not in card
    assert "25%" in card and "1,234" in card
    assert "5 more are not shown." in card and "3 are gone since the server started." in card


@pytest.mark.parametrize("colours", [False, True])
def test_nothing_is_wider_than_a_phone(chat: Chat, colours: bool) -> None:
    touch = "Emulation.setTouchEmulationEnabled"
    appear(chat.driver, 375, 720, "light")
    chat.driver.execute_cdp_cmd(touch, {"enabled": True})
    chat.run("setColours(arguments[0])", colours)
    chat.answered("Explain binary search")
    wide = chat.run(
        "return [...document.querySelectorAll('body *')].filter(n => n.getClientRects().length &&"
        " !n.closest('.scroller, pre, .unseen') && n.getBoundingClientRect().right > 376)"
        ".map(n => n.tagName + '.' + n.className)"
    )
    chat.driver.execute_cdp_cmd(touch, {"enabled": False})
    appear(chat.driver, 1280, 860, "light")
    assert wide == []


@pytest.mark.parametrize(("message", "colours"), [
    (f"long {TOKENS} {RATE}", False), (f"wall {TOKENS} {RATE}", True), ("code", False),
], ids=["prose", "one line", "code"])  # fmt: skip
def test_a_long_answer_stays_smooth(chat: Chat, message: str, colours: bool) -> None:
    chat.run("setColours(arguments[0])", colours)
    chat.mode("fast")
    chat.run(WATCH)
    chat.ask(message)
    until(lambda: not chat.all(".running"), "the answer has ended", 120)
    times: list[float] = chat.run("return times.slice(1)")  # milliseconds between frames
    assert len(times) > LEAST_FRAMES * sum(times) / 1000 and max(times) < LONGEST
    end = "const b = document.getElementById('scroll'); return b.scrollHeight - b.scrollTop - b.clientHeight"
    assert chat.run(end) < 48  # its end is in view
    said = chat.run("return turns[0].answers[0].text.length")
    assert len(chat.text(ANSWERED)) >= 0.9 * said  # Markdown's marks are not shown
