"""A small web application: its path is the prompt. gunicorn runs it; FOLDER is the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import fastslow

FOLDER = os.environ["FOLDER"]
FEW = fastslow.SamplingParams(max_tokens=4, ignore_eos=True)


def answer(prompt: str) -> str:
    out = fastslow.generate(prompt, FEW, model=FOLDER, kv_memory="4MiB", progress=False)
    return f"{os.getpid()} {out.token_ids}"


FIRST = answer("one two")  # with --preload in the process that forks the workers


def application(environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
    respond("200 OK", [("Content-Type", "text/plain")])
    return [f"{FIRST}\n{answer(environ['PATH_INFO'].strip('/') or 'one two')}".encode()]
