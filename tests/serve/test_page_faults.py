"""The page in Chromium: errors, keys, settings that are wrong, hostile texts and hostile storage."""

from typing import Any

import pytest
from browser import IN_CHROMIUM, until
from fake_chat import HOSTILE
from page_chat import ANSWERED, ENTER, ESCAPE, TAB, Chat

pytestmark = IN_CHROMIUM
CUT = """
const pen = document.createElement("canvas").getContext("2d");
return [...document.querySelectorAll("dialog input")].filter((field) => {
  pen.font = getComputedStyle(field).font;
  return pen.measureText(field.placeholder).width > field.clientWidth - 2 * parseFloat(getComputedStyle(field).paddingLeft);
}).map((field) => field.placeholder);
"""


def test_errors_are_sentences_that_say_what_to_do(chat: Chat) -> None:
    chat.engine.busy = 1
    chat.answered("echo later")
    assert chat.text(".problem p") == (
        "The server is busy. It says: the queue of 64 requests is full. Try again in 2 seconds."
    )
    again = until(lambda: [b for b in chat.all(".problem button") if b.is_enabled()], "again", 10)
    assert again[0].text == "Try again"
    again[0].click()
    until(lambda: chat.all(".answer .rendered p"), "it is answered")
    chat.ended()
    assert chat.text(".answer .rendered") == "later"
    for word, sentence in {
        "wrong": "temperature=1000 must be at most 2.",
        "off": "The connection broke in the middle of the answer. What came is kept; try again.",
        "error": "the engine ended in the middle of the request",
    }.items():
        chat.answered(word)
        assert chat.text(".problem p") == sentence
    chat.answered("echo fine")
    roles = [m["role"] for m in chat.engine.bodies[-1]["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


def test_a_key_is_asked_for_and_forgotten_with_the_tab(chat: Chat) -> None:
    chat.engine.key = "secret"
    chat.answered("echo hello")
    assert "asks for an API key" in chat.text(".problem p")
    chat.driver.find_element("id", "key").send_keys("wrong", ENTER)
    until(lambda: "does not know this API key" in chat.text("#key-said"), "a wrong key is told")
    chat.driver.find_element("id", "key").send_keys("secret", ENTER)
    until(lambda: chat.all("#notice[hidden]"), "the right one is taken")
    chat.button("Try again").click()
    until(lambda: chat.all(".answer .rendered p"), "it is answered")
    chat.ended()
    assert chat.run("return sessionStorage.getItem('fastslow.key')") == "secret"
    assert "secret" not in chat.run("return JSON.stringify(localStorage)")


def test_settings_are_sent_and_checked(chat: Chat) -> None:
    chat.driver.find_element("id", "open-settings").click()
    usual = chat.driver.find_element("css selector", '[data-setting="temperature"]')
    assert usual.get_attribute("placeholder") == "1"
    assert chat.run(CUT) == [], "no placeholder is cut"
    given = {"system": "Be brief.", "drafter": "off", "schema": '{"type": "object"}'}
    given |= {"temperature": "0.5", "max_tokens": "77", "seed": "3", "thinking_budget": "9"}
    for name, value in given.items():
        chat.driver.find_element("css selector", f'[data-setting="{name}"]').send_keys(value, TAB)
    chat.driver.find_element("css selector", '[data-setting="schema"]').send_keys("}", TAB)
    assert chat.text("#settings-wrong").startswith("JSON schema: ")
    chat.press(ESCAPE)
    chat.answered("echo x")
    body = chat.engine.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 77, 3)
    assert (body["thinking_budget"], body["speculation"]) == (9, "off")
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    chat.driver.find_element("id", "open-settings").click()
    chat.button("Reset settings").click()
    chat.press(ESCAPE)
    chat.answered("echo y")
    assert "temperature" not in chat.engine.bodies[-1]


@pytest.mark.parametrize("colours", [False, True])
def test_hostile_text_stays_text(chat: Chat, colours: bool) -> None:
    chat.run("setColours(arguments[0])", colours)
    chat.answered("hostile <img src=x onerror=window.hurt=9>", "deep")
    assert HOSTILE.splitlines()[0] in chat.text(ANSWERED)
    inside = "#turns script, #turns img, #turns iframe, #turns svg, #turns a, #turns b b"
    assert chat.all(inside) == [] and chat.run("return window.hurt ?? null") is None
    html = "try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch (e) { return e.name }"
    assert chat.run(html) == "TypeError"
    chat.driver.get_log("browser")  # that was an error, and the test's own


HURT = "<img src=x onerror=window.hurt=1>"
HURTING: dict[str, Any] = {
    "text": HOSTILE,
    "mode": "<script>window.hurt=2</script>",
    "marks": [16, 10**15, 33],
    "problem": HURT,
    "metrics": {"mode": "<b>", "acceptance": ["<i>", 5, None], "decision": {"toString": 1}}
    | {"drafter": "<u>", "thinking_ended": "__proto__"},
    "usage": {"prompt_tokens_details": {"cached_tokens": "<s>"}},
}
STORED: dict[str, Any] = {
    "no list": {"a": 1},
    "null": None,
    "wrong kinds": [*(1, None, {"asked": 3}, {"asked": "x", "answers": [{"text": {}, "marks": ["<b>"]}]})],
    "hostile": [{"asked": HURT, "answers": [HURTING], "chosen": 99}],
}


@pytest.mark.parametrize("name", STORED)
def test_a_stored_conversation_is_not_trusted(chat: Chat, name: str) -> None:
    for colours in (False, True):
        wrong: dict[str, Any] = {"colours": colours, "mode": 5, "settings": []}
        store = "localStorage.setItem('fastslow.' + arguments[0], JSON.stringify(arguments[1]))"
        chat.run(store, "turns", STORED[name])
        chat.run(store, "preferences", wrong)
        chat.open()
        assert chat.all("#turns img, #turns script, #turns iframe") == []
        assert chat.run("return window.hurt ?? null") is None
    chat.answered("echo still here")
    assert "still here" in chat.text(ANSWERED)
