"""A tiny model behind a real server, for all tests of the server that need no other."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import SOON, browser
from fake_chat import ChatEngine, FakeChat
from fastapi import FastAPI
from page_chat import Chat, fresh
from serve_engines import write_served
from serve_tools import NAME, open_tiny, served, write_tiny

from fastslow.llm import LLM
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

# Ray reads it when it is imported: the token of the cluster that some tests start
os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4})


def pytest_itemcollected(item: pytest.Item) -> None:
    if "window" in getattr(item, "fixturenames", ()) and item.name != SOON:
        item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that never ends an answer by itself."""
    return write_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with open_tiny(write_tiny(tmp_path_factory.mktemp("tiny"))) as llm:
        yield llm


@pytest.fixture(scope="session")
def app(llm: LLM) -> FastAPI:
    return create_app(LocalEngine(llm, NAME))


@pytest.fixture(scope="session")
def url(app: FastAPI) -> Iterator[str]:
    with served(app) as url:
        yield url


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def page() -> Iterator[tuple[str, ChatEngine]]:
    """The page's address, and the made-up engine that answers there."""
    engine = ChatEngine()
    with served(FakeChat(engine)) as url:
        yield url, engine


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def chat(window: Any, page: tuple[str, ChatEngine]) -> Iterator[Chat]:
    with fresh(window, *page) as chat:
        yield chat
