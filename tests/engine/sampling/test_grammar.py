"""A request's grammar is a function of its text; where the answer begins after a thought."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grammar_tools import GrammarKit
from spellings import Pieces

import fastslow.engine.sampling.grammars.grammar as grammar_module
from fastslow.engine.params import GrammarSpec
from fastslow.engine.sampling.answer_start import AtOnce, BehindChannels
from fastslow.engine.sampling.grammars import llguidance_grammar
from fastslow.engine.sampling.grammars.grammar import Ended, Grammar, GrammarError
from fastslow.engine.sampling.grammars.llguidance_grammar import LLGuidanceMatcher
from fastslow.engine.text.thought import HARMONY, ChannelSplitter, ThoughtSplitter, ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer

VOCAB = 320
OPEN, CLOSE, END = 3, 4, 2
PROMPT = [7, 8, 9]
YES = GrammarSpec(choice=["yes", "no"])


@pytest.fixture(scope="module")
def kit(bpe: Tokenizer) -> GrammarKit:
    return GrammarKit(bpe, VOCAB)


def said(grammar: Grammar, tokens: list[int], drafted: Sequence[int]) -> object:
    mask = grammar.at(tokens, drafted)
    allowed = None if mask.allowed is None else np.flatnonzero(mask.allowed).tolist()
    return mask.only, None if mask.only is not None else allowed, sorted(mask.forbidden)


def replayed(kit: GrammarKit, spec: GrammarSpec, text: list[int], opened: bool | None) -> object:
    """Return what holds after a text, asked for without a draft and token by token."""
    grammar = kit.grammar(spec, frozenset({END}), len(PROMPT), opened)
    for size in range(len(text) + 1):
        found = said(grammar, [*PROMPT, *text[:size]], [])
    return found


@pytest.mark.parametrize("opened", [None, False, True])
@pytest.mark.parametrize("seed", range(6))
def test_all_is_a_function_of_the_text(kit: GrammarKit, opened: bool | None, seed: int) -> None:
    """Whatever was drafted before, in any order, and however many tokens were committed at once."""
    schema = {"type": "array", "items": {"enum": ["on", 5]}, "minItems": 1, "maxItems": 3}
    spec, draws = GrammarSpec(json_schema=schema), np.random.default_rng(seed)
    grammar = kit.grammar(spec, frozenset({END}), len(PROMPT), opened)
    text: list[int] = []
    for _ in range(12):
        tokens = [*PROMPT, *text]
        runs: list[list[int]] = [[]]
        for _ in range(8):  # a tree of drafts
            run = runs[int(draws.integers(len(runs)))]
            mask = grammar.at(tokens, run)
            some = [mask.only] if mask.only is not None else [*range(5, 12), CLOSE]
            if mask.allowed is not None and mask.only is None:
                some = np.flatnonzero(mask.allowed).tolist()
            runs.append([*run, int(draws.choice(some))])
        for place in draws.permutation(len(runs)):
            run = runs[int(place)]
            if grammar.fits(tokens, run):
                expected = replayed(kit, spec, [*text, *run], opened)
                assert said(grammar, tokens, run) == expected
        longest = max([run for run in runs if grammar.fits(tokens, run)], key=len)
        text += longest
        if grammar.whole_at(tokens, longest) is not None:
            return


def test_certain_tokens_are_those_that_the_masks_leave(kit: GrammarKit) -> None:
    schema = {"type": "object", "properties": {"long_key": {"const": 1}}, "required": ["long_key"]}
    grammar = kit.grammar(GrammarSpec(json_schema=schema), frozenset({END}), 3)
    begun = kit.tokenizer.encode('{"', add_special=False)
    ahead = list(grammar.ahead(PROMPT, begun, 40))
    assert kit.tokenizer.decode(ahead) == 'long_key"'
    for size, token in enumerate(ahead):
        assert grammar.at(PROMPT, [*begun, *ahead[:size]]).only == token
    assert list(grammar.ahead(PROMPT, begun, 3)) == ahead[:3]
    assert grammar.at(PROMPT, [*begun, *ahead]).only is None


def test_end_tokens_come_where_the_grammar_may_end(kit: GrammarKit) -> None:
    grammar = kit.grammar(GrammarSpec(regex="ab?"), frozenset({END, 60}), 3)
    a, b = (kit.tokenizer.encode(letter)[0] for letter in "ab")
    assert grammar.at(PROMPT, []).only == a
    mask = grammar.at(PROMPT, [a])
    assert mask.allowed is not None and np.flatnonzero(mask.allowed).tolist() == sorted([END, 60, b])
    assert grammar.whole_at(PROMPT, [a, END]) == 2 and grammar.whole_at(PROMPT, [a, b, 9]) == 2
    assert grammar.whole_at(PROMPT, [a]) is None
    assert not grammar.fits(PROMPT, [a, END, 9]) and not grammar.fits(PROMPT, [END])


def follow(grammar: Grammar, tokens: Sequence[int]) -> bool:
    """Tell whether each token is allowed where it stands."""
    for size, token in enumerate(tokens):
        mask = grammar.at(PROMPT, tokens[:size])
        if mask.only is not None:
            allowed = token == mask.only
        elif mask.allowed is None:
            allowed = token not in mask.forbidden
        else:
            allowed = bool(mask.allowed[token])
        assert allowed == grammar.fits(PROMPT, tokens[: size + 1]), (size, token)
        if not allowed:
            return False
    return True


LETTERS = ["<end>", *"abcdenoysthik<>/", "\n", "\n\n", " ", "yes", "no", "</think>", "<think>"]
MERGED = [">\n\n", ">yes", ">\n\nno", ">maybe", "k>", "k>no", "\nyes", " yes", "x</think>\n\nyes"]
WORDS = Pieces([*LETTERS, *MERGED], ["<end>"], eos="<end>")


def by_words(opened: bool, spec: GrammarSpec = YES, special: bool = False) -> Grammar:
    tokenizer = Pieces(WORDS.pieces, ["<end>", *(["</think>", "<think>"] if special else [])], eos="<end>")
    kit = GrammarKit(tokenizer, len(WORDS.pieces), ThoughtTags("<think>", "</think>"))
    return kit.grammar(spec, frozenset({0}), len(PROMPT), opened)


@pytest.mark.parametrize("pieces, fits", [
    (["a", "</think>", "yes"], True),
    (["a", "</think>", "\n\n", "yes"], True),
    (["a", "</think>", "\n\n", "\n\n", "yes"], True),
    (["a", "</think>", "\n\n", "\n\n", "\n"], False),
    (["a", "</think>", "\nyes"], True),
    (["a", "</think>", " yes"], False),
    (["a", "</think>", "a"], False),
    (["a", "<", "/", "t", "h", "i", "n", "k", ">", "no"], True),
    (["<", "/", "t", "h", "i", "n", "k", ">\n\n", "no"], True),
    (["<", "/", "t", "h", "i", "n", "k", ">\n\nno"], True),
    (["<", "/", "t", "h", "i", "n", "k", ">yes"], True),
    (["<", "/", "t", "h", "i", "n", "k", ">maybe"], False),
    (["a", ">maybe", "</think>", "no"], True),  # no tag had begun
    (["<", "/", "t", "h", "i", "n", "k>no"], True),
    (["x</think>\n\nyes"], True),
    (["a", "<end>"], False),
    (["<", "<", "/", "t", "h", "i", "n", "k", ">maybe"], False),
])  # fmt: skip
def test_an_answer_begins_behind_the_thought(pieces: list[str], fits: bool) -> None:
    grammar = by_words(opened=True)
    tokens = [WORDS.pieces.index(piece) for piece in pieces]
    assert follow(grammar, tokens) is fits
    if fits:
        last = pieces[-1]
        over = grammar.whole_at(PROMPT, tokens) == len(tokens)
        assert over is last.endswith(("yes", "no")), "the grammar took what was after the tag"
        split = ThoughtSplitter(ThoughtTags("<think>", "</think>"), True, once=True)
        text = split.push("".join(pieces))[1] + split.finish()[1]
        assert text in ("yes", "no"), "the caller reads what the grammar held"


@pytest.mark.parametrize("special", [False, True])
def test_a_model_may_open_a_thought_first(special: bool) -> None:
    words = WORDS.pieces

    def fits(*pieces: str) -> bool:
        return follow(by_words(False, special=special), [words.index(p) for p in pieces])

    assert fits("yes") and fits("<think>", "a", "</think>", "\n", "no")
    assert not fits("a") and not fits("\n") and not fits("</think>")
    assert not fits("<think>", "a", "</think>", "<think>")
    assert fits("<", "t", "h", "i", "n", "k", ">", "a", "</think>", "yes")
    assert not fits("<", "yes") and not fits("<", "<end>")


def test_an_answer_may_spell_a_tag() -> None:
    grammar = by_words(True, GrammarSpec(regex="a<think>b</think>"))
    tokens = [WORDS.pieces.index("</think>"), WORDS.pieces.index("a")]
    tokens += grammar.ahead(PROMPT, tokens, 40)
    assert "".join(WORDS.pieces[t] for t in tokens) == "</think>a<think>b</think>"
    assert follow(grammar, tokens) and grammar.whole_at(PROMPT, tokens) == len(tokens)
    for size in range(1, 9):  # however the stream is cut
        split = ThoughtSplitter(ThoughtTags("<think>", "</think>"), True, once=True)
        whole = "thought</think>\n\na<think>b</think>"
        parts = [split.push(whole[i : i + size]) for i in range(0, len(whole), size)]
        parts.append(split.finish())
        assert "".join(p[0] for p in parts) == "thought" and "".join(p[1] for p in parts) == "a<think>b</think>"


MARKS = ["<end>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
SAID = ["analysis", "final", "assistant", "yes", "no", "\n", "commentary", " json", "a"]
CHANNELS = Pieces([*MARKS, *SAID], MARKS, eos="<end>")


def in_channels(prompt: str) -> Grammar:
    kit = GrammarKit(CHANNELS, len(CHANNELS.pieces), HARMONY)
    return Grammar(BehindChannels(kit.spellings, prompt), kit.compiler.matcher(YES), frozenset({0}), len(PROMPT))


@pytest.mark.parametrize("prompt, pieces, fits", [
    ("<|start|>assistant", "<|channel|> final <|message|> yes", True),
    ("<|start|>assistant", "<|channel|> final json <|message|> yes", True),
    ("<|start|>assistant", "<|channel|> final <|message|> a", False),
    (
        "<|start|>assistant",
        "<|channel|> analysis <|message|> a no a <|end|> "
        + "<|start|> assistant <|channel|> commentary <|message|> a <|end|> "
        + "<|start|> assistant <|channel|> final <|message|> no",
        True,
    ),
    ("<|start|>assistant", "<|channel|> analysis <|message|> a <end>", False),
    ("<|start|>assistant<|channel|>analysis<|message|>", "a <|end|> <|start|> <end>", False),
    ("<|start|>assistant<|channel|>final<|message|>", "yes", True),
    ("<|start|>assistant<|channel|>final<|message|>", "a", False),
    ("a plain text", "no", True),
    ("a plain text", "a", False),
])  # fmt: skip
def test_in_channels_the_answer_is_the_final_one(prompt: str, pieces: str, fits: bool) -> None:
    words = [" json" if p == "json" else p for p in pieces.split()]
    assert follow(in_channels(prompt), [CHANNELS.pieces.index(p) for p in words]) is fits
    if fits and prompt.endswith("assistant"):
        assert ChannelSplitter(once=True).push("".join(words))[1] in ("yes", "no")


@pytest.mark.parametrize("prompt", ["<|start|>assistant", "<|start|>user<|message|>a<|end|>"])
def test_what_is_said_before_the_first_channel_is_no_answer(prompt: str) -> None:
    grammar = in_channels(prompt)
    words = ["a", "a", "<|channel|>", "final", "<|message|>", "no"]
    assert follow(grammar, [CHANNELS.pieces.index(p) for p in words]) and not grammar.at_once
    split = ChannelSplitter(once=True)
    assert [*map(split.push, words)][-1] == ("", "no") and split.finish() == ("", "")
    assert split.push("") == ("", "")
    cut = ChannelSplitter(once=True)
    assert (cut.push("aa"), cut.finish()) == (("", ""), ("", ""))


def test_a_very_long_text_is_certain_from_where_its_rest_is_short(kit: GrammarKit) -> None:
    """Cutting all of it into tokens at each of its places would hold up every request for seconds."""
    matcher = kit.matcher(json_schema={"const": "x" * 1_500})
    tokens = [int(matcher.mask().argmax())]
    assert kit.tokenizer.token_bytes(tokens[0]) == b'"' and matcher.accept(tokens[0]) and not matcher.forced()
    while not (rest := matcher.forced()):
        assert matcher.accept(int(matcher.mask().argmax()))
    assert len(b"".join(map(kit.tokenizer.token_bytes, rest))) in range(1000, 1025)
    assert all(map(matcher.accept, rest)) and matcher.ended() is Ended.MUST


def test_an_error_of_the_library_ends_no_other_text(kit: GrammarKit) -> None:
    """Neither that of another request nor the one before the error."""
    bomb = "((((a{1,999}){1,999}){1,999}){1,999}){999}"
    x, n, a, y = (kit.tokenizer.encode(text, add_special=False)[0] for text in "xnay")
    spec = GrammarSpec(lark=f'start: "x" ("y" | "n" BOMB)\nBOMB: /{bomb}/')
    wild, calm = (kit.grammar(spec, frozenset({END}), len(PROMPT)) for _ in range(2))
    assert said(calm, PROMPT, []) == said(wild, PROMPT, [])
    with pytest.raises(GrammarError, match="the grammar stopped: "):
        for size in range(60):
            wild.at([*PROMPT, x], [n, *[a] * size])
    for grammar in (calm, wild):
        assert said(grammar, [*PROMPT, x], []) == (None, sorted([y, n]), [])
        assert said(grammar, [*PROMPT, x, y], []) == (END, None, [])


def refusing(kit: GrammarKit, refuses: Callable[[int], bool], **fields: Any) -> Grammar:
    """A grammar of which the library cannot follow some tokens."""

    class Refusing(LLGuidanceMatcher):
        def accept(self, token: int) -> bool:
            if refuses(token):
                raise GrammarError("too complex")
            return super().accept(token)

    whole = kit.matcher(**fields)
    matcher = Refusing(whole._matcher, VOCAB, whole._take)
    return Grammar(AtOnce(kit.spellings), matcher, frozenset({END}), len(PROMPT))


def test_a_draft_that_the_library_cannot_follow_does_not_fit(kit: GrammarKit) -> None:
    y, n = (kit.tokenizer.encode(text, add_special=False)[0] for text in "yn")
    grammar, other = (refusing(kit, lambda token: token == n, choice=["yes", "no"]) for _ in "12")
    assert not grammar.fits(PROMPT, [n]) and grammar.fits(PROMPT, [y])
    assert grammar.ahead(PROMPT, [n], 5) == [] and grammar.whole_at(PROMPT, [n]) is None
    with pytest.raises(GrammarError):
        grammar.at(PROMPT, [n])
    assert said(grammar, [*PROMPT, y], []) == replayed(kit, YES, [y], None)
    with pytest.raises(GrammarError):
        other.at([*PROMPT, n], [])


def test_what_the_library_followed_once_it_may_refuse_later(kit: GrammarKit) -> None:
    """Its limits count all that it was asked. Only the request's own row hears of that, not the step."""
    y, n, o = (kit.tokenizer.encode(text, add_special=False)[0] for text in "yno")

    def forgetting() -> Grammar:
        times = itertools.count()
        return refusing(kit, lambda token: token == n and next(times) > 0, regex="(y|n)[on]{1,3}")

    for ask in (Grammar.fits, Grammar.whole_at, lambda g, tokens, run: g.fits([*tokens, n], [o])):
        grammar = forgetting()
        assert grammar.fits(PROMPT, [n]) and grammar.fits(PROMPT, [y]) and not ask(grammar, PROMPT, [n, o])


@pytest.mark.parametrize(
    "spec",
    [
        {"lark": "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(9_000)) + '\nr9000: "a"'},
        {"gbnf": "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(1_500)) + '\nr1500 ::= "a"'},
    ],
    ids=["lark", "gbnf"],
)  # fmt: skip
def test_a_chain_of_rules_does_not_end_the_process(kit: GrammarKit, spec: dict[str, str]) -> None:
    """Compiled on a usual stack of 8 MiB the library would end it from some 2,900 rules on."""
    (a,) = kit.tokenizer.encode("a", add_special=False)
    matcher = kit.matcher(**spec)
    assert np.flatnonzero(matcher.mask()).tolist() == [a]
    assert matcher.accept(a) and matcher.ended() is Ended.MUST


def test_a_long_gbnf_grammar_is_converted_in_a_process(kit: GrammarKit) -> None:
    """It says what a short one says."""
    for comments in (1, 3000):
        with pytest.raises(ValueError, match=r"^grammar.gbnf cannot be used: .*Rule 'nowhere' not found"):
            kit.matcher(gbnf="# a note\n" * comments + "root ::= nowhere\n")
    (a,) = kit.tokenizer.encode("a", add_special=False)
    matcher = kit.matcher(gbnf="# ein Zeichen: ß\n" * 3000 + 'root ::= "a"\n')
    assert np.flatnonzero(matcher.mask()).tolist() == [a]


LONG_GBNF = "# a note\n" * 3000 + 'root ::= "a"\n'


def test_a_conversion_runs_no_code_of_the_working_folder(
    kit: GrammarKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of where PYTHONPATH leads; a library of that place is found all the same."""
    for name in ("llguidance", "re", "encodings"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (a,) = kit.tokenizer.encode("a", add_special=False)
    assert np.flatnonzero(kit.matcher(gbnf=LONG_GBNF).mask()).tolist() == [a]
    assert not (tmp_path / "ran").exists()


def test_a_conversion_that_is_killed_is_a_value_error(kit: GrammarKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llguidance_grammar, "CONVERT", "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(ValueError, match=r"its conversion ended with exit code -9$"):
        kit.matcher(gbnf=f"{LONG_GBNF}# killed")


def test_an_answer_has_a_budget_of_long_masks(kit: GrammarKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "LONG_MASK", -1.0)
    free = kit.grammar(GrammarSpec(regex="[a-f]{9}"), frozenset({END}), 3)
    a, b = (kit.tokenizer.encode(letter)[0] for letter in "ab")
    assert free.at(PROMPT, []).allowed is not None
    monkeypatch.setattr(grammar_module, "MOST_LONG", 1e-9)
    with pytest.raises(GrammarError, match=r"the grammar is too slow: masks of more than .* an answer has"):
        free.at(PROMPT, [a])
    monkeypatch.setattr(grammar_module, "LONG_MASK", 100.0)
    with pytest.raises(GrammarError, match="too slow"):
        free.at(PROMPT, [a, b])


def test_one_late_mask_is_forgotten(kit: GrammarKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not make every later request of the same grammar a slow one, which drafts nothing."""
    for clock in ("thread_time", "perf_counter"):  # all others are quick
        monkeypatch.setattr(time, clock, lambda: 0.0)
    first = kit.matcher(regex="[ab]*")
    first._note(0.5)  # as where the system was busy
    assert first.copy().seconds == 0.5
    (token,) = kit.tokenizer.encode("a", add_special=False)
    for _ in range(700):
        assert first.copy().accept(token)
    assert first.copy().seconds < grammar_module.SLOW


def test_a_token_that_another_thread_follows_slowly_is_noticed(kit: GrammarKit) -> None:
    grammar = kit.grammar(GrammarSpec(regex="[ab]*"), frozenset(), 0)
    (token,) = kit.tokenizer.encode("a", add_special=False)
    matcher: Any = grammar._matcher
    grammar.at([], [])
    matcher.seconds = 1.01 * grammar_module.SLOW
    matcher._take = lambda *_: not threading.Event().wait(0.01)
    assert not grammar.walks_slowly and grammar.whole_at([], [token]) is None
    assert grammar.walks_slowly and matcher.seconds >= 0.01
