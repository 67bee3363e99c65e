"""Suffix lookups in a large corpus: time to build, open and ask; memory.

    python benchmarks/lookups.py FOLDER... --new FOLDER --tokens 10000000 --out lookups/

Texts (.txt, .md, .rst, .py, .html, .c) of the folders, cut into pieces of about 300 tokens, are the answers; a corpus
that is there already is used again. Queries walk through texts of --new, which are not to be in the corpus, and
through some that are in it, eight accepted tokens a step at most, as a request would: each is one proposal of 8
nodes. A lookup is the search in the corpus with the runs it finds; a proposal is all that a step does for a
request. Both are microseconds of processor time, so that neighbours do not count. Cold lookups are some of them after
64 MB of other memory was read each time, as a step reads a model's weights: then Python itself, too, comes from
memory. FASTSLOW_KERNELS=off measures Python's own search.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
import timeit
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import probe
from figures import options

from fastslow.draft.suffix.corpus import Corpus, save, vocab_size
from fastslow.draft.suffix.documents import Documents, depths
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.draft.suffix.sealed import read_sealed
from fastslow.draft.suffix.sources import SuffixMatch
from fastslow.engine.host.progress import bar
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.models.locate import resolve_model

KINDS = {".txt", ".md", ".rst", ".py", ".html", ".c"}
PIECE = 300
ASKED = 50  # pieces of each kind that queries walk through
COLD = 3000  # lookups with cold caches, or as many as there are
OTHER = 2**26  # bytes, more than the caches hold
NODES = 8


def pieces(folders: list[Path], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of all texts, in pieces; a text that was read before is left out."""
    files = [p for f in folders for p in sorted(f.rglob("*")) if p.suffix in KINDS and p.is_file()]
    random.Random(0).shuffle(files)
    seen = set()
    for path in files:
        text = path.read_text("utf-8", "replace")
        if hash(text) in seen:
            continue
        seen.add(hash(text))
        ids = tokenizer.encode(text, add_special=False)
        for i in range(0, len(ids) - PIECE // 2, PIECE):
            yield ids[i : i + PIECE]


def stored_texts(path: Path) -> list[list[int]]:
    """Some texts of a corpus, from all over it."""
    arrays = read_sealed(path).arrays
    tokens, sizes = arrays["tokens"], arrays["sizes"][:, 0]
    ends = sizes.cumsum(dtype="int64")
    chosen = random.Random(1).sample(range(len(ends)), ASKED)
    return [tokens[ends[i] - sizes[i] : ends[i] - 1][::-1].tolist() for i in chosen]


class TimedCorpus:
    """A corpus whose lookups are timed."""

    def __init__(self, corpus: Corpus, before: Callable[[], object] = lambda: None) -> None:
        self._corpus, self._before = corpus, before
        self.times: list[float] = []  # microseconds

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        self._before()
        begun = time.thread_time_ns()
        found = self._corpus.find(recent, ahead)
        self.times.append((time.thread_time_ns() - begun) / 1e3)
        return found


def ask(corpus: Any, texts: list[list[int]]) -> tuple[list[float], float]:
    """Microseconds of each proposal, and tokens accepted per step."""
    times, steps, made = [], 0, 0
    for number, text in enumerate(texts):
        draft = SuffixDraft(corpus)
        request: Any = SimpleNamespace(
            id=number,
            tokens=text[:8],
            prompt_length=8,
            max_len=10**9,
            end_ids=frozenset(),
            memory_key=None,
            shared=True,
        )
        draft.propose([request], [NODES])
        while len(request.tokens) < len(text) - NODES - 1:
            begun = time.thread_time_ns()
            tree = draft.propose([request], [NODES])[0]
            times.append((time.thread_time_ns() - begun) / 1e3)
            rest = text[len(request.tokens) :]
            count = len(tree.match(rest)) + 1
            steps, made = steps + 1, made + count
            request.tokens += rest[:count]
    return times, made / steps


def say(name: str, times: list[float]) -> None:
    cuts = statistics.quantiles(times, n=100)
    print(f"  {name}: median {cuts[49]:.0f}, p99 {cuts[98]:.0f}, {len(times)} of them")


def build(path: Path, texts: Iterable[list[int]], most: int, vocab: dict[str, int]) -> None:
    """Index texts up to `most` tokens; says how long it took."""
    documents = Documents()
    for text in texts:
        documents.add(text)
        if documents.tokens >= most:
            break
    before, begun = probe.memory(os.getpid())["peak"], time.perf_counter()
    save(path, documents, vocab, bar(depths(vocab_size(vocab)), "Sorting"))
    took, peak = time.perf_counter() - begun, probe.memory(os.getpid())["peak"]
    print(f"{documents.tokens} tokens, {len(documents)} texts, {path.stat().st_size / 1e6:.0f} MB")
    print(f"indexed and written in {took:.1f} s, {peak - before:.0f} MiB above the tokens")


def main() -> None:
    parser = options(__doc__, model="smollm2", tokens=10_000_000, out=Path("lookups"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--new", nargs="+", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = load_tokenizer(resolve_model(args.model))
    vocab = tokenizer.vocab()
    path = args.out / "corpus.safetensors"
    if not path.is_file():
        build(path, pieces(args.folders, tokenizer), args.tokens, vocab)
    new = list(itertools.islice(pieces(args.new, tokenizer), ASKED))
    known = stored_texts(path)
    opened = timeit.repeat(lambda: Corpus(path, vocab), number=1, repeat=5)
    print(f"opened and checked in {statistics.median(opened):.2f} s")
    corpus, other = Corpus(path, vocab), np.ones(OTHER // 8, np.int64)
    for name, texts in (("new text", new), ("text in the corpus", known)):
        timed = TimedCorpus(corpus)
        (_, rate), (times, _) = ask(timed, texts), ask(corpus, texts)
        print(f"{name}: {rate:.2f} tokens a step")
        say("lookup", timed.times)
        say("proposal", times)
        timed = TimedCorpus(corpus, other.sum)
        for text in texts:
            if len(timed.times) < COLD:
                ask(timed, [text])
        say("cold lookup", timed.times)


if __name__ == "__main__":
    main()
