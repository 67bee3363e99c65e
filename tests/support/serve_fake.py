"""A server in front of an engine that answers by a script, in a process of its own, for tests under attack."""

from fake_engine import FakeEngine

from fastslow.serve.app import create_app
from fastslow.serve.http.listen import address_of, listen, run
from fastslow.serve.http.server import serve


async def main() -> None:
    with listen("127.0.0.1", 0) as listener:
        engine = FakeEngine()
        print(address_of(listener), flush=True)
        await serve(create_app(engine), engine, listener, 0, lambda card: None)


if __name__ == "__main__":
    run(main())
