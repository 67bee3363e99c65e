"""The planner: counts, terms, the published figures, the search."""

import json
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from checkpoints import MOGE, write_dense
from cli_tools import printed, record, refusal
from gguf_tools import write_gguf
from published_figures import PUBLISHED, PublishedRow

from fastslow.tools.plan.device import DEVICES
from fastslow.tools.plan.published import KNOWN, config_of
from fastslow.tools.plan.search import DraftCost, best, choose_batches, choose_nodes, fewest_cards, largest
from fastslow.tools.plan.step import CARDS, Efficiency, ForwardWork, Precision, Setting, TextReads

WHOLE = Efficiency(memory=1.0, compute=1.0, link=1.0, layer=0.0)
PRO = "openpangu-pro-moe-72b"


def setting(device: str = "800i-a2", cards: int = 4, efficiency: Efficiency = WHOLE) -> Setting:
    precision = Precision("w8a8", "bf16")
    return Setting(ForwardWork.of(config_of(PRO)), DEVICES[device], cards, precision, efficiency)


def test_work_is_counted_from_the_tensors() -> None:
    work = ForwardWork.of(config_of(PRO))
    expert = 3 * 5120 * 1344 * 48
    assert work.expert == expert and round(expert / 1e9, 2) == 0.99 and work.head == 153376 * 5120
    assert work.always + 64 * work.expert + 2 * work.head == work.stored == 71_988_781_056
    assert work.kv == 2 * 48 * 8 * 128 and work.texts == (TextReads(work.kv, 4 * 48 * 40 * 128),)
    assert (work.chosen, work.fewer) == (8, 2)
    drafting = ForwardWork.of(config_of("openpangu-r-72b"))  # its layer that drafts has keys in memory alone
    assert drafting.kv / 51 == drafting.texts[0].numbers / 50


def test_terms_are_work_over_rates_and_prefill_hides_the_shorter() -> None:
    s = setting()
    terms = s.decode(3, 2, 1000)
    w, d = s.work, s.device
    read = w.always + w.expert * 64 * (1 - (7 / 8) ** 6) + 2 * w.head
    assert terms.weights == pytest.approx(read / 4 / d.bandwidth)
    assert terms.kv == pytest.approx(3 * 1000 * w.kv * 2 / 4 / d.bandwidth)
    layers = 2 * 6 * (w.always + 8 * w.expert) / 560e12
    half = (2 * 6 * w.head + 6 * 1000 * w.texts[0].operations) / 280e12
    assert terms.compute == pytest.approx((layers + half) / 4)
    assert terms.links == pytest.approx(4 * 48 * 0.75 * 6 * 5120 * 2 / (3 * 28e9)) and terms.fixed == 0
    assert terms.seconds == pytest.approx(sum(astuple(terms))) and setting(cards=1).decode(1, 1, 10).links == 0
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


@pytest.mark.parametrize(("device", "cards", "batches"), [("300i-duo", 1, (1, 4, 16)), ("800i-a2", 8, (1, 4, 16, 64))])
@pytest.mark.parametrize("mode", ["deep", "fast"])
def test_flash_is_near_its_bound(device: str, cards: int, batches: tuple[int, ...], mode: str) -> None:
    """The bound is made of published sizes alone: weights that a step reads at 80% of the bandwidth, and 313 us a layer."""
    work = ForwardWork.of(config_of("openpangu-2.0-flash"))
    chosen = {"deep": 8, "fast": 4}[mode]
    assert (work.chosen, work.fewer) == (8, 4)
    s = Setting(replace(work, chosen=chosen), DEVICES[device], cards, Precision("w8a8", "bf16"), CARDS)
    attention = 2560 * 1024 + 1024 * 48 * 192 + 2560 * 576 + 512 * 48 * 256 + 48 * 128 * 2560
    for batch in batches:
        met = 256 * (1 - (1 - chosen / 256) ** batch)
        read = 46 * attention + 2 * 3 * 2560 * 9216 + 44 * 3 * 2560 * 1024 * (1 + met) + 2 * 151552 * 2560
        bound = read / (0.8 * s.device.bandwidth * cards) + 46 * 313e-6
        assert bound < s.decode(batch, 1, 2048).seconds < 1.15 * bound
        assert s.memory(batch, 2048) < 0.95 * s.device.memory


def test_what_a_row_sees() -> None:
    """Windows and an indexer's choice end it; an index key is read of every token."""
    work = ForwardWork.of(config_of("openpangu-2.0-flash"))
    operations = 2 * 48 * (576 + 512)
    assert set(work.texts) == {
        TextReads(16 * 576, 16 * operations, 2048, 128), TextReads(30 * 576, 30 * operations, 512, 128),
        TextReads(16 * 128, 16 * 2 * 24 * 128),
    }  # fmt: skip
    s = Setting(work, DEVICES["800i-a2"], 8, Precision("w8a8", "bf16"), WHOLE)
    numbers = 16 * 576 * 2048 + 30 * 576 * 512 + 16 * 128 * 9000
    assert s.decode(3, 1, 9000).kv == pytest.approx(3 * (2 * numbers + 2 * work.state) / 8 / 1.6e12)


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
    assert DraftCost.of(0.5, "free").step(s, 8, 2, 100) == s.decode(8, 3, 100)


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
    assert best(choose_batches(s, DraftCost.of(0.0, "mtp"), 2048, 0.1)).nodes == 0


def test_what_cannot_be_is_said() -> None:
    for arguments, message in (
        (("--cards", 1), "cards=1: a card would hold 74.0 GB of weights and one request, but has"),
        (("--latency-ms", 5), "latency-ms=5 cannot be reached: one request alone takes "),
        (("--weights", "w8a9"), "weights='w8a9' must be 'w8a8' or 'bf16'"),
        (("--device", "800i"), "device='800i' must be '800i-a2', '300i-duo' or 'h100'"),
        (("--acceptance", "nan"), "acceptance=nan must be a finite number"),
        (("--model", "openpangu"), "model='openpangu' is unknown"),
        (("smollm2.gguf",), "model='smollm2.gguf' is unknown"),
        (("abacus",), "device is missing: one of 800i-a2, 300i-duo, h100. A plan is for cards,"),
        ((PRO, "--model", PRO), "MODEL and --model are two: give one of them"),
        (("--sequence", 10**6), "sequence=1000000 must be at most"),
    ):
        assert message in " ".join(refusal("plan", *arguments).split())


def test_the_command(tmp_path: Path) -> None:
    """Without a number it takes the fewest cards that hold the model."""
    shown = printed("plan")
    assert all(words in shown for words in ("tok/step", "prefill", "2 x 800i-a2, the fewest that"))
    best = record("plan", "--cards", 4)["best"]
    assert best["tokens_per_second_per_card"] > 1000
    assert best["binding"] in ("weights", "kv", "compute", "links", "fixed")
    assert record("plan", "--weights", "bf16")["cards"] == 3
    assert record("plan", "--device", "300i-duo")["cards"] == 1
    (tmp_path / "config.json").write_text(json.dumps(MOGE))
    file = write_gguf(write_dense(tmp_path / "dense"), tmp_path / "m.gguf")
    for model in (tmp_path / "config.json", tmp_path, file):
        assert "1 x h100, the few" in printed("plan", *(model, "--device", "h100", "--sequence", 64, "--batch", 2))
    for context, batch in ((2048, 1), (2048, 300)):
        s = fewest_cards(setting(cards=1), context, batch)
        room = 0.95 * s.device.memory
        assert s.memory(batch, context) <= room < setting(cards=s.cards - 1).memory(batch, context)


def test_the_72b_is_inspected(tmp_path: Path) -> None:
    """config.json alone: 71.99 B in all, 16.50 B for a token."""
    (tmp_path / "config.json").write_text(json.dumps(KNOWN[PRO]))
    found = record("inspect", tmp_path)
    assert found["parameters"] == 71_988_781_056
    assert found["modes"]["deep"]["active_parameters"] == 16_498_139_136
    assert found["memory"]["bfloat16"]["kv_per_token"] == 2 * 48 * 8 * 128 * 2
    table = printed("inspect", tmp_path)
    assert all(words in table for words in ("71.99 B", "16.50 B", "8 groups of 8", "token ids"))
