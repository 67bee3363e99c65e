"""The page at `/`, and the figures that its second tab shows."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from fastslow.engine.model.routed_units import RoutedUnits, Unit
from fastslow.engine.params import Mode
from fastslow.policies.meaning import in_a_line
from fastslow.serve.api.engine import NotReady
from fastslow.serve.api.limits import Who

router = APIRouter()
PATIENCE = 5.0  # seconds that an engine has for its figures
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page and its headers, made once. Its Content-Security-Policy allows the file's own scripts and styles
    by their hashes, this server for all calls, and nothing else."""
    text = files(__package__).joinpath("index.html").read_text("utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, inside in INLINE.findall(text):
        digest = hashlib.sha256(inside.encode()).digest()
        hashes[kind].append(f"'sha256-{base64.b64encode(digest).decode()}'")
    policy = (
        "default-src 'none'",
        f"script-src {' '.join(hashes['script'])}",
        f"style-src {' '.join(hashes['style'])}",
        "connect-src 'self'",
        "img-src data:",  # its icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text can become HTML or code
        "trusted-types 'none'",
    )
    body = text.encode()
    return body, {
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "; ".join(policy),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


@router.get("/", include_in_schema=False)
async def show(request: Request) -> Response:
    """The page. A browser looks each time and gets it again only where it has changed."""
    body, headers = page()
    known = request.headers.get("if-none-match", "")
    if headers["ETag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/v1/page", include_in_schema=False)
async def shown(request: Request, who: Who) -> dict[str, Any]:
    """Return what the page has to know of the model, and of the modes that are open to this key."""
    card, settings = request.app.state.engine.card, request.app.state.settings
    allowed, usual = who.limits.modes, settings.default_mode
    modes = {n: Mode(**m) for n, m in card.modes.items() if allowed is None or n in allowed}
    units = RoutedUnits(cast(Unit, card.units or "groups"), card.most)
    return {
        "model": card.name,
        "modes": {
            name: {
                "description": in_a_line(mode, units, card.thinks),
                "thinking_budget": mode.thinking_budget,
            }
            for name, mode in modes.items()
        },
        "default_mode": usual if usual in modes else next(iter(modes), None),
        "thinks": card.thinks,
        "has_head": card.has_head,
        "temperature": settings.sampling_of(card)["temperature"],
    }


@router.get("/v1/stats")
async def stats(request: Request, who: Who) -> dict[str, Any]:
    """Return what the engine has done so far, and what it holds now: `EngineStats.to_dict()`. `age_seconds`: how old
    that is, where the engine does not answer now."""
    try:
        found = await asyncio.wait_for(request.app.state.engine.stats(), PATIENCE)
    except TimeoutError:
        raise NotReady(f"the engine gave no figures within {PATIENCE:g} seconds") from None
    return {"age_seconds": 0.0, **found}
