"""`fastslow serve --replicas` on one machine: processes that nobody else reaches, as many as the load needs."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from loops import within
from processes_served import address, command, wait_ready
from ray_engines import descendants, living
from refusals import refused
from serve_engines import LONG, answer_of, asked, settings_of, until

from fastslow.serve.api.config import ServerConfig
from fastslow.serve.api.engine import NotReady
from fastslow.serve.engines.process.client import EngineClient, Restarts
from fastslow.serve.engines.process_replicas import ProcessReplicas
from fastslow.serve.engines.replica_settings import ReplicaSettings
from fastslow.serve.engines.routed_engine import RoutedEngine
from fastslow.serve.engines.routing.scaling import ScalingSettings
from fastslow.serve.engines.settings import VISIBLE, EngineSettings, _see

PATIENCE = 180  # seconds
SOON = 120.0  # seconds: other tests may run beside it
BODY = {"model": "tiny", "prompt": "one two", "max_tokens": 12, "mode": "fast", "temperature": 0}


@pytest.mark.slow
@within()
async def test_a_flood_brings_a_second_replica_and_quiet_ends_it(folder: Path) -> None:
    scaling = ScalingSettings(quick_queue_seconds=0.1, up_seconds=1.0, down_seconds=3.0)
    replicas = ProcessReplicas(settings_of(folder, max_running=1), ReplicaSettings(1, 2, drain=1.0), scaling)
    engine = RoutedEngine(replicas)
    await engine.start()
    assert (len(replicas.running), replicas.starting) == (1, 0)
    [first] = replicas.pids
    clients = [asyncio.create_task(_keep_asking(engine, n)) for n in range(16)]
    try:
        await until(lambda: len(replicas.running) == 2, SOON)
        await until(lambda: _both_answer(engine), SOON)
    finally:
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    second = next(pid for pid in replicas.pids if pid != first)
    await until(lambda: replicas.pids == [first] and not living([second]), SOON)
    stats = await engine.stats()
    assert stats["replicas_gone"] == 1 and stats["replicas_running"] == 1
    await engine.close()
    assert not living([first])


async def _keep_asking(engine: RoutedEngine, client: int) -> None:
    number = 0
    while True:
        number += 1
        await answer_of(engine, asked(f"{client} {number}", LONG // 2, f"{client}", mode="fast"))


async def _both_answer(engine: RoutedEngine) -> bool:
    each = (await engine.stats())["replicas"].values()
    return len(each) == 2 and all(one["steps"] > 0 for one in each)


@pytest.mark.slow
@within()
async def test_a_replica_of_two_ranks_ends_with_its_ranks_and_comes_again(folder: Path) -> None:
    alone = await settings_of(folder).open()
    ask = asked("seeded", 30, sampling={"temperature": 1.0, "seed": 5})
    right = (await answer_of(alone, ask)).token_ids
    await alone.close()
    replicas = ProcessReplicas(settings_of(folder, parallel="ep=2", device="cpu"), ReplicaSettings(cpus=2))
    engine = RoutedEngine(replicas)
    await engine.start()
    assert (await answer_of(engine, ask)).token_ids == right
    [replica] = replicas.pids
    ranks = descendants(replica)
    assert ranks, "they are processes of the replica"
    running = asyncio.create_task(answer_of(engine, asked("long", LONG)))
    await until(lambda: bool(engine._running))
    os.kill(replica, signal.SIGKILL)
    with pytest.raises(NotReady):
        await running
    await until(lambda: not living(ranks), SOON)
    await until(lambda: bool(replicas.pids), SOON)
    assert (await answer_of(engine, ask)).token_ids == right
    await engine.close()


@pytest.mark.slow
@within()
async def test_a_replica_that_is_given_up_is_replaced_while_another_one_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr("fastslow.serve.engines.process_replicas.AGAIN", 0.0)
    replicas = ProcessReplicas(settings_of(folder), ReplicaSettings(2, 2))
    engine = RoutedEngine(replicas)
    await engine.start()
    await until(lambda: len(replicas.running) == 2, SOON)
    poor = replicas._replicas[0]
    poor.client._restarts = Restarts(most=1)
    os.kill(poor.client.pid or 0, signal.SIGKILL)
    await until(lambda: len(replicas.running) == 2 and poor not in replicas._replicas, SOON)
    assert any("is given up" in line for line in logged) and not engine.gave_up.done()
    for one in replicas._replicas:
        one.client._restarts = Restarts(most=1)
    monkeypatch.setattr("fastslow.serve.engines.process_replicas.AGAIN", 60.0)
    for pid in replicas.pids:
        os.kill(pid, signal.SIGKILL)
    assert await asyncio.wait_for(engine.gave_up, SOON) == "no replica can be started"
    await engine.close()


class Client(EngineClient):
    """Does not start."""

    made: ClassVar[list[EngineSettings]] = []
    seconds = 0.0

    def __init__(self, settings: EngineSettings, **options: Any) -> None:
        super().__init__(settings, **options)
        self.made.append(settings)

    async def start(self) -> None:
        await asyncio.sleep(self.seconds)
        raise ValueError("groups=9 is too much")


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr("fastslow.serve.engines.process_replicas.EngineClient", Client)
    monkeypatch.setattr(Client, "made", [])
    return Client


@pytest.mark.parametrize(("options", "devices"), [
    ({"device": "cuda"}, [[0], [1]]),
    ({"device": "npu", "parallel": "ep=2"}, [[0, 1], [2, 3]]),
    ({"device": "cpu"}, [None, None]),
])  # fmt: skip
@within()
async def test_a_model_that_does_not_fit_ends_the_start_of_replicas_with_devices_for_each(
    no_start: type[Client], options: dict[str, Any], devices: list[list[int] | None]
) -> None:
    engine = RoutedEngine(ProcessReplicas(settings_of(Path("x"), **options), ReplicaSettings(2, 2)))
    with pytest.raises(ValueError, match=r"^groups=9 is too much$"):
        await engine.start()
    await engine.close()
    assert [one.devices for one in no_start.made] == devices


@within()
async def test_a_server_that_closes_while_replicas_load_does_not_wait(
    no_start: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(no_start, "seconds", 30.0)
    engine = RoutedEngine(ProcessReplicas(settings_of(Path("x")), ReplicaSettings(2, 2)))
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.01)
    await engine.close()
    with pytest.raises(NotReady, match="the server is closing"):
        await starting


def test_what_the_operator_gives() -> None:
    def of(shared: int | None = None, **fields: Any) -> ReplicaSettings:
        return ReplicaSettings.of(ServerConfig(**fields), shared)

    assert of(8, replicas="2").cpus == 4 and of(2, replicas="1:4").cpus == 1
    assert of(replicas="2", options={"parallel": "ep=2"}).cpus == 2
    assert of(8, replica_cpus=3).cpus == 3 and of(drain_seconds=5).drain == 5.0
    assert of(options={"parallel": "ep=2", "device": "npu:0"}).resources == {"NPU": 2.0}
    some = of(replica_resources="NPU=1, fast_disk=0.5", options={"device": "cuda"})
    assert some.resources == {"NPU": 1.0, "fast_disk": 0.5}
    for name, text, sentence in (
        ("replicas", "4:1", "must name the smaller number first"),
        ("replicas", "0", "must be from 1 to 10000"),
        ("replicas", "x", "must be a number such as 2, or a range such as 1:4"),
        *(
            ("replica_resources", text, "must be names with amounts above 0, such as NPU=1")
            for text in ("GPU", "GPU=0", "GPU=nan", "=1", "GPU=1e9")
        ),
        ("replica_resources", "CPU=2", "names CPU: give replica_cpus for that"),
    ):
        refused(sentence, of, None, **{name: text})


def test_an_engine_sees_its_devices_among_those_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE["npu"], raising=False)
    _see("npu", [2, 3])
    assert os.environ[VISIBLE["npu"]] == "2,3"
    monkeypatch.setenv(VISIBLE["cuda"], "4,GPU-7")
    _see("cuda", [1])
    assert os.environ[VISIBLE["cuda"]] == "GPU-7"
    refused("CUDA_VISIBLE_DEVICES=GPU-7 has no device of number 1", _see, "cuda", [1])


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_command_serves_and_leaves_no_process(folder: Path, end: signal.Signals) -> None:
    options: list[Any] = ["--port", 0, "--replicas", 2, "--kv-memory", "16MiB"]
    with command(folder, *options, "--served-model-name", "tiny") as server:
        url = address(server)
        wait_ready(url)
        pids = [server.pid, *descendants(server.pid)]
        assert len(pids) == 3
        texts = {
            httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).json()["choices"][0]["text"] for _ in range(6)
        }
        assert len(texts) == 1 and httpx.get(f"{url}/v1/stats").json()["replicas"]
        if end == signal.SIGINT:
            os.killpg(server.pid, end)  # as a terminal does
        else:
            server.send_signal(end)
        assert server.wait(PATIENCE) == (-end if end == signal.SIGKILL else 0)
        asyncio.run(until(lambda: not living(pids)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [([], 2, "missing"), (["--address", "127.0.0.1:9"], 1, "nothing is reached at the address")],
)
def test_what_is_not_there(tmp_path: Path, options: list[str], code: int, said: str) -> None:
    with command(tmp_path / "missing", "--port", 0, "--replicas", 2, *options) as server:
        _, printed = server.communicate(timeout=PATIENCE)
        assert server.returncode == code and said in printed and "Traceback" not in printed
