"""The planner: counts, terms, the published figures, the search."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import MOGE, write_dense
from gguf import GGMLQuantizationType as Kind
from gguf_tools import matrices, write_gguf
from published_figures import PUBLISHED, PublishedRow
from typer.testing import CliRunner

from fastslow.tools.cli.app import app
from fastslow.tools.plan import device as device_module
from fastslow.tools.plan.device import DEVICES, THIS_CPU, Device, find_device
from fastslow.tools.plan.published import KNOWN, config_of, precision_of
from fastslow.tools.plan.search import (
    DraftCost,
    best,
    choose_batches,
    choose_nodes,
    fewest_cards,
    largest,
)
from fastslow.tools.plan.step import CARDS, Efficiency, ForwardWork, Precision, Setting

WHOLE = Efficiency(memory=1.0, compute=1.0, link=1.0, layer=0.0)
PRO = "openpangu-pro-moe-72b"


def setting(device: str = "800i-a2", cards: int = 4, efficiency: Efficiency = WHOLE) -> Setting:
    precision = Precision.of("w8a8", "bf16")
    return Setting(ForwardWork.of(config_of(PRO)), DEVICES[device], cards, precision, efficiency)


def test_work_is_counted_from_the_tensors() -> None:
    work = ForwardWork.of(config_of(PRO))
    expert = 3 * 5120 * 1344 * 48
    assert work.expert == expert and round(expert / 1e9, 2) == 0.99
    assert work.head == 153376 * 5120
    assert work.always + 64 * work.expert + 2 * work.head == work.stored == 71_988_781_056
    assert work.kv == 2 * 48 * 8 * 128
    assert work.attention == 4 * 48 * 40 * 128


def test_terms_are_bytes_and_operations_over_rates() -> None:
    s = setting()
    terms = s.decode(3, 2, 1000)
    w, d = s.work, s.device
    read = w.always + w.expert * 64 * (1 - (7 / 8) ** 6) + 2 * w.head
    assert terms.weights == pytest.approx(read / 4 / d.bandwidth)
    assert terms.kv == pytest.approx(3 * 1000 * w.kv * 2 / 4 / d.bandwidth)
    layers = 2 * 6 * (w.always + 8 * w.expert) / 560e12
    half = (2 * 6 * w.head + 6 * 1000 * w.attention) / 280e12
    assert terms.compute == pytest.approx((layers + half) / 4)
    assert terms.links == pytest.approx(4 * 48 * 0.75 * 6 * 5120 * 2 / (3 * 28e9))
    assert terms.fixed == 0
    assert terms.seconds == pytest.approx(sum(astuple(terms)))
    assert setting(cards=1).decode(1, 1, 10).links == 0


def test_prefill_hides_the_shorter_of_products_and_links() -> None:
    terms = setting().prefill(4, 2048)
    assert terms.kv == 0 and min(terms.compute, terms.links) == 0
    assert terms.binding == "links"  # at the peak of everything
    halved = Efficiency(memory=1.0, compute=0.3, link=1.0, layer=0.0)
    assert setting(efficiency=halved).prefill(4, 2048).binding == "compute"


@pytest.mark.parametrize("row", PUBLISHED)
def test_published_figures(row: PublishedRow) -> None:
    """The first two rows made `CARDS`; every other decode row is within 15%, prefill within 20%."""
    tokens = row.batch * (2048 if row.drafted is None else 1)
    assert 1000 * tokens / row.milliseconds / 4 == pytest.approx(row.rate, rel=0.035)
    s, mtp = setting(row.device, efficiency=CARDS), DraftCost(acceptance=0.7)
    if row.drafted is None:
        seconds, limit = s.prefill(row.batch, 2048).seconds, 0.20
    else:
        seconds = mtp.step(s, row.batch, row.drafted, 2048).seconds / mtp.tokens(row.drafted)
        limit = 1e-6 if row in PUBLISHED[:2] else 0.15
    assert 1000 * seconds == pytest.approx(row.milliseconds, rel=limit)


def test_drafting() -> None:
    drafting = DraftCost.of(0.5, "mtp")
    assert [drafting.tokens(n) for n in (0, 1, 2)] == [1, 1.5, 1.75]
    assert DraftCost.of(4.0, "free").acceptance == 0.75  # tokens per step of long drafts
    assert DraftCost.of(4.0, "free").tokens(60) == pytest.approx(4.0)
    s = setting()
    plain, drafted = drafting.step(s, 8, 0, 100), drafting.step(s, 8, 2, 100)
    assert plain == s.decode(8, 1, 100)
    one = s.of(s.work.only(1)).decode(8, 1, 100)
    assert drafted.seconds == pytest.approx(s.decode(8, 3, 100).seconds + 2 * one.seconds)
    free = DraftCost.of(0.5, "free").step(s, 8, 2, 100)
    assert free == s.decode(8, 3, 100)


@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 64, 100, 4097])
def test_the_largest_that_fits(wanted: int) -> None:
    assert largest(lambda n: n <= wanted) == wanted


def test_the_search_keeps_latency_and_memory_and_grows_to_the_limit() -> None:
    s, drafting = setting(efficiency=CARDS), DraftCost.of(0.7, "mtp")
    choices = choose_batches(s, drafting, 2048, 0.1)
    assert {c.bound for c in choices} == {"latency", "memory"}
    for c in choices:
        assert c.latency <= 0.1 and c.memory <= 0.95 * s.device.memory
        more = choose_nodes(s, drafting, 2048, c.batch + 1)[c.nodes]
        assert more.latency > 0.1 or more.memory > 0.95 * s.device.memory
    top = best(choices)
    assert top.rate == max(c.rate for c in choices) and top.nodes > 0
    never = DraftCost.of(0.0, "mtp")
    assert best(choose_batches(s, never, 2048, 0.1)).nodes == 0


def test_what_cannot_be_is_said() -> None:
    drafting = DraftCost.of(0.7, "mtp")
    with pytest.raises(
        ValueError, match=r"cards=1: a card would hold 74\.0 GB .* but has 65\.3 GB"
    ):
        choose_batches(setting(cards=1), drafting, 2048, 0.1)
    slow = setting(efficiency=CARDS)
    with pytest.raises(ValueError, match=r"latency-ms=5 cannot be reached: .* takes \d+\.\d ms"):
        choose_batches(slow, drafting, 2048, 0.005)
    with pytest.raises(ValueError, match="cards=2: this-cpu is alone"):
        Device(THIS_CPU, 1e9, 1e9, 1e9, 1e9).link(2)
    for names, message in (
        (("w8a9", "bf16"), "weights='w8a9' is unknown; did you mean 'w8a8'"),
        (("w8a8", "fp4"), "kv='fp4' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            Precision.of(*names)
    with pytest.raises(ValueError, match="device='800i' is unknown; did you mean '800i-a2'"):
        find_device("800i")
    with pytest.raises(ValueError, match="acceptance=-1 must be a number of at least 0"):
        DraftCost.of(-1, "mtp")
    with pytest.raises(ValueError, match="acceptance=nan must be a number of at least 0"):
        DraftCost.of(float("nan"), "mtp")
    with pytest.raises(ValueError, match="model='openpangu' is unknown"):
        config_of("openpangu")


def test_a_gguf_file_is_planned_in_its_own_numbers(tmp_path: Path) -> None:
    folder = write_dense(tmp_path / "model")
    file = write_gguf(folder, tmp_path / "m.gguf", matrices(Kind.Q8_0))
    own = precision_of(str(file), "own", "bf16")
    assert own.head == 34 / 32 and 34 / 32 < own.weight < 1.2, "norms are float32"
    assert precision_of(str(write_gguf(folder, tmp_path / "f.gguf")), "own", "bf16").weight == 4
    with pytest.raises(ValueError, match="weights='own' is for GGUF files, and .*model is none"):
        precision_of(str(folder), "own", "bf16")

    def title(*arguments: str) -> str:
        done = CliRunner().invoke(
            app, ["plan", "--model", str(file), "--sequence", "64", *arguments]
        )
        assert done.exit_code == 0, done.output
        return done.stdout.replace("\n", "")

    assert f"m.gguf, own ({8 * own.weight:.1f} bits), KV bf16" in title()
    assert "m.gguf, w8a8, KV bf16" in title("--weights", "w8a8")


def test_this_machine_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "READ", 2**22)
    monkeypatch.setattr(device_module, "SIZE", 128)
    monkeypatch.setattr(device_module, "LONG", 0.02)
    device = find_device(THIS_CPU)
    assert device.name == THIS_CPU and device.peer is None
    assert device.bandwidth > 1e6 and device.int8 == 2 * device.half > 1e6
    assert device.memory > 1e8


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["plan", *arguments])

    shown = run("--cards", "4", "--sequence", "2048", "--latency-ms", "100")
    assert shown.exit_code == 0 and "tok/step" in shown.output and "prefill" in shown.output
    record = json.loads(run("--cards", "4", "--json").output)
    assert record["best"]["tokens_per_second_per_card"] > 1000
    assert record["best"]["binding"] in ("weights", "kv", "compute", "links", "fixed")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(MOGE))
    for model in (str(config), str(tmp_path)):
        asked = run("--model", model, "--device", "h100", "--sequence", "64", "--batch", "2")
        assert asked.exit_code == 0 and "products" in asked.output
    wrong = run("--model", str(config), "--sequence", "9999")
    assert "sequence=9999 must be at most 512" in str(wrong.exception)


@pytest.mark.parametrize(
    ("batch", "costs"),
    [
        (1, (1.44, 1.83, 2.17, 2.72, 3.15)),
        (4, (1.45, 1.72, 1.87, 2.02, 2.07)),
        (8, (1.29, 1.39, 1.42, 1.44, 1.44)),
        (16, (1.10, 1.12, 1.12, 1.12, 1.12)),
    ],
)
def test_weights_of_a_verify_step(batch: int, costs: tuple[float, ...]) -> None:
    """Against a plain step, for 1, 2, 3, 5 and 7 drafted tokens; computed by hand from
    U(T) = 64 (1 - (7/8)^T), 7.8 B weights that are always read and 0.99 B of an expert."""
    work, device = ForwardWork.of(config_of(PRO)), DEVICES["800i-a2"]
    s = Setting(work, device, 4, Precision.of("bf16", "bf16"), WHOLE)
    plain = s.decode(batch, 1, 0).weights
    found = [s.decode(batch, nodes + 1, 0).weights / plain for nodes in (1, 2, 3, 5, 7)]
    assert found == pytest.approx(costs, abs=0.006)


def test_without_a_number_it_takes_the_fewest_cards_that_hold_the_model() -> None:
    """A model of 72 GB on cards of 64 GiB: the bare command has an answer."""
    bare = CliRunner().invoke(app, ["plan"])
    assert bare.exit_code == 0, bare.output
    assert "on 2 x 800i-a2, the fewest that hold it" in bare.stdout
    found = CliRunner().invoke(app, ["plan", "--weights", "bf16", "--json"])
    assert json.loads(found.stdout)["cards"] == 3
    one = CliRunner().invoke(app, ["plan", "--device", "300i-duo", "--json"])
    assert json.loads(one.stdout)["cards"] == 1
    for context, batch in ((2048, 1), (2048, 300)):
        s = fewest_cards(setting(cards=1), context, batch)
        room = 0.95 * s.device.memory
        assert s.memory(batch, context) <= room < setting(cards=s.cards - 1).memory(batch, context)
    alone = Device(THIS_CPU, 1e9, 1e9, 1e9, 1e9)
    assert fewest_cards(replace(setting(cards=1), device=alone), 2048).cards == 1, "it has no links"


def test_the_72b_counts_as_arithmetic_has_it(tmp_path: Path) -> None:
    """config.json alone: 71.99 B in all, 16.50 B for a token."""
    (tmp_path / "config.json").write_text(json.dumps(KNOWN["openpangu-pro-moe-72b"]))
    hidden, layers, heads, kv_heads, dim = 5120, 48, 40, 8, 128
    queries, keys = heads * dim, kv_heads * dim
    attention = 2 * hidden * queries + 2 * hidden * keys + (queries + 2 * keys + hidden)  # + biases
    expert, shared = 3 * hidden * 1344, 3 * hidden * 5376
    router = 64 * hidden + 64  # and router_scale
    layer = attention + 2 * hidden + router + shared
    ends = 2 * 153376 * hidden + hidden  # embedding, head, last norm
    total = layers * (layer + 64 * expert) + ends
    active = layers * (layer + 8 * expert) + ends
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"])
    record = json.loads(shown.stdout)
    assert record["parameters"] == total == 71_988_781_056
    assert record["modes"]["deep"]["active_parameters"] == active == 16_498_139_136
    assert record["memory"]["bfloat16"]["kv_per_token"] == 2 * 48 * 8 * 128 * 2
    table = CliRunner().invoke(app, ["inspect", str(tmp_path)]).output
    assert all(words in table for words in ("71.99 B", "16.50 B", "8 groups of 8", "token ids"))
