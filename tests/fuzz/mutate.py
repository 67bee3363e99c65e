"""Damages to the files of a case: blind ones, and those that know JSON, safetensors, GGUF and templates."""

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np

from fastslow.draft.suffix import sealed

DEEP, LONG = "@deep@", "@long@"  # become text that json.dumps does not write
INTEGERS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 33, 63, 64, 65, 128, 255, 256, 1000, 65536, 5 * 10**7)
EDGES = tuple(sign * 2**n + step for n in (31, 32, 53, 62, 63, 64) for sign in (1, -1) for step in (-1, 0, 1))
ODD: tuple[Any, ...] = (
    -1, 3 * 10**9, 10**400, True, False, None, "", "x", "3", "\ud800", "a" * 5000, "\0", "../x",
    0.0, -0.0, 0.5, 1.5, 1e308, -1e308, 1e-320, 1e39, math.nan, math.inf, -math.inf,
    [], [1, 2], [[]], [-1], [3 * 10**9], ["x"] * 300, {}, {"a": 1}, {"": {}}, [None], DEEP, LONG,
)  # fmt: skip
WORDS = (
    "float16", "float64", "int8", "W8A8", "W8A8_DYNAMIC", "FLOAT", "C8", "llama3", "dynamic",
    "linear", "yarn", "LlamaForCausalLM", "PanguProMoEForCausalLM", "PanguProMoEV2ForCausalLM",
    "PanguEmbeddedForCausalLM", "model", "head", "self", "suffix|head", "suffix+ngram", "auto",
    "off", "fast", "deep", "brief", "restart", "halves-last", "<think>", "</think>", "U8", "I64",
    "BF16", "F8_E4M3", "BOOL", "F4", "model.norm.weight", "model-00001-of-00002.safetensors",
)  # fmt: skip
SNIPPETS = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**10 }}", "{{ messages[9].x.y }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{",
    "{% include '/etc/passwd' %}", "{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}",
    "{{ 9**9**9 }}", "{{ '%1000000000d' % 1 }}", "{{ 1/0 }}", "{% if %}", "{{ messages | tojson }}",
    "{{ strftime_now('%Y' * 100000) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ('a' * 99999) | list | join('a' * 99999) }}", "\0\ud7ff", "{{ [[]] * 10**9 }}",
    "{{ 'x'.center(10**10) }}", "{{ range(10**9) | list }}", "{% set x = 'a' * 10**8 %}{{ x }}",
    "{{ bos_token.format(messages) }}", "{{ '{:>9999999999}'.format(1) }}", "[unused9]<think>",
)  # fmt: skip


def mutate(folder: Path, random: Random) -> list[str]:
    """Damage one to three files below a folder; says how."""
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            break
        by_kind = sorted({path.suffix for path in files})
        suffix = random.choice(by_kind)  # one of many JSON files is as likely as the tensor file
        path = random.choice([path for path in files if path.suffix == suffix])
        able = [change for ends, change in CHANGES if path.name.endswith(ends)]
        if not able or random.random() < 0.25:
            able = [blind, blind, moved]
        change = random.choice(able)
        try:
            told = change(path, random)
        except Exception as error:  # noqa: BLE001 - a file may have become anything
            told = f"nothing: {type(error).__name__}"  # what an earlier damage left fits no more
        done.append(f"{path.relative_to(folder)}: {change.__name__} {told}"[:300])
    return done


def _value(random: Random, old: Any) -> Any:
    if isinstance(old, int) and not isinstance(old, bool) and random.random() < 0.5:
        return random.choice((old + 1, old - 1, 2 * old, old // 2, 10 * old, -old, float(old), str(old), [old]))
    return random.choice(random.choice((INTEGERS, EDGES, ODD, ODD, WORDS)))


def _places(value: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value, so deep."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if depth > 1 and isinstance(inner, dict | list):
            yield from _places(inner, depth - 1)


def _changed(value: Any, random: Random) -> str:
    """Change one place of a JSON value; says which."""
    places = list(_places(value, random.choice((1, 2, 3, 9))))  # a vocabulary has most places
    container, key = random.choice(places)
    what = random.choice(("set", "set", "set", "set", "drop", "copy", "rename", "add"))
    if what == "set":
        container[key] = _value(random, container[key])
        return f"set {key!r} = {str(container[key])[:40]!r}"
    if what == "drop":
        del container[key]
    elif what == "copy":
        other, place = random.choice(places)
        container[key] = other[place]
    elif isinstance(container, list):
        container.append(_value(random, container[key]))
    elif what == "rename":
        container[random.choice((*WORDS, str(key)[:-1], f"{key}x"))] = container.pop(key)
    else:
        container[random.choice(WORDS)] = _value(random, container[key])
    return f"{what} {key!r}"


def _written(value: Any) -> str:
    """JSON text, with what no dict can hold."""
    text = json.dumps(value)
    text = text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    return text.replace(json.dumps(LONG), "9" * 5000)


def json_value(path: Path, random: Random) -> str:
    value = json.loads(path.read_text("utf-8"))
    told = _changed(value, random)
    path.write_text(_written(value), "utf-8")
    return told


def json_twice(path: Path, random: Random) -> str:
    """A key that stands there twice."""
    value = json.loads(path.read_text("utf-8"))
    key = random.choice(sorted(value))
    path.write_text(_written({key: _value(random, value[key])})[:-1] + ", " + _written(value)[1:], "utf-8")
    return repr(key)


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _write(path: Path, header: dict[str, Any], body: bytes, random: Random) -> None:
    """With a right seal where it is a corpus, mostly: it is looked at further."""
    text = _written(header).encode()
    text += b" " * (-len(text) % 8)
    data = bytearray(struct.pack("<Q", len(text)) + text + body)
    found = data.find(sealed.MARK)
    if found >= 0 and random.random() < 0.8:
        place = found + len(sealed.MARK)
        digest = sealed._digest(memoryview(bytes(data)), place)  # type: ignore[arg-type]
        data[place : place + len(digest)] = digest
    path.write_bytes(data)


def tensor_header(path: Path, random: Random) -> str:
    """Any place of a safetensors header, or of JSON in its metadata, as a draft head has it; or the
    header's length."""
    header, body = _header(path)
    facts = header.get("__metadata__", {})
    names = [name for name in sorted(facts) if str(facts[name]).startswith("{")]
    if random.random() < 0.15:
        data = bytearray(path.read_bytes())
        size = struct.unpack_from("<Q", data)[0]
        new = random.choice((0, 1, size - 1, size + 8, len(data), 10**8, 2**31, 2**63, 2**64 - 1))
        struct.pack_into("<Q", data, 0, new)
        path.write_bytes(data)
        return f"{new}"
    if names and random.random() < 0.7:
        value = json.loads(facts[name := random.choice(names)])
        told = _changed(value, random)
        facts[name] = _written(value)
    else:
        told = _changed(header, random)
    _write(path, header, body, random)
    return told


def tensor_entry(path: Path, random: Random) -> str:
    """Drop or add a tensor, let two trade places, dtypes or shapes, or give one another shape or dtype
    of the same bytes."""
    header, body = _header(path)
    name, other = random.choices([name for name in header if name != "__metadata__"], k=2)
    entry, what = header[name], random.choice(("drop", "add", "trade", "shape", "shape", "dtype"))
    if what == "drop":
        del header[name]
    elif what == "add":
        shape = random.choice(([0], [0, 2**40], [1] * 60, [2**40, 0], []))
        empty = {"dtype": "F32", "shape": shape, "data_offsets": [len(body)] * 2}
        header[random.choice((f"{name}x", *WORDS))] = empty
    elif what == "trade":
        for field in random.choice((["dtype"], ["shape"], ["data_offsets"], [*entry])):
            entry[field], header[other][field] = header[other][field], entry[field]
    elif what == "shape":
        shape, size = entry["shape"], math.prod(entry["shape"])
        shapes = ([size], [1, size], [size, 1], shape[::-1], [*shape, 1], [1, *shape], [size, 1, 1])
        entry["shape"] = random.choice(shapes)
    else:
        same = ({"F32", "I32", "U32"}, {"BF16", "F16", "I16"}, {"I8", "U8", "BOOL"}, {"F64", "I64"})
        entry["dtype"] = random.choice(sorted(k for s in same if entry["dtype"] in s for k in s))
    _write(path, header, body, random)
    return f"{what} {name} {header.get(name)}"


FILLS = tuple(map(bytes.fromhex, ["00", "ff", "7f", "80", "0000807f", "807f", "0000c07f", "01"]))


def tensor_values(path: Path, random: Random) -> str:
    """Numbers of a tensor: not finite, huge, tiny, negative, or any."""
    header, body = _header(path)
    name = random.choice([name for name in header if name != "__metadata__"])
    first, last = header[name]["data_offsets"]
    step = random.choice((4, 64, last - first))
    at = random.randrange(first, max(first + 1, last - step))
    fill = random.choice((*FILLS, random.randbytes(step or 1)))
    some = (fill * step)[:step][: last - at]
    _write(path, header, body[:at] + some + body[at + len(some) :], random)
    return f"{name} {step} {fill[:8]!r}"


def gguf_number(path: Path, random: Random) -> str:
    """Any number of the header: a count, a length, a type, a size, an offset, a value; or a letter of a name."""
    reader = gguf.GGUFReader(path, "r+")
    field = random.choice([*reader.fields.values(), *(tensor.field for tensor in reader.tensors)])
    part = random.choice([part for part in field.parts if part.size])
    at = random.randrange(part.size)
    old = int(part[at])
    near = (old + 1, old - 1, 2 * old, old // 2, old ^ 0xFF, old + 32)
    new = random.choice(random.choice((near, INTEGERS, EDGES, range(45))))
    part[at] = np.asarray(new % 2**64, np.uint64).astype(part.dtype)
    reader.data.flush()
    return f"{field.name}: {old} -> {part[at]}"


def gguf_text(path: Path, random: Random) -> str:
    """A word of the header becomes another of the same length."""
    data = path.read_bytes()
    old = random.choice((b"llama", b"gpt2", b"smollm", b"blk.0", b"attn_q", b"weight", b"tokenizer"))
    at = random.choice([n for n in range(len(data)) if data.startswith(old, n)])
    new = bytes(random.choices(b"abc.\xff\0q0", k=len(old)))
    path.write_bytes(data[:at] + new + data[at + len(old) :])
    return f"{old!r} -> {new!r}"


def template_snippet(path: Path, random: Random) -> str:
    """In a template, or in that of a tokenizer_config.json."""
    text, snippet = path.read_text("utf-8"), random.choice(SNIPPETS)
    if path.suffix == ".json":
        value = json.loads(text)
        value["chat_template"] = snippet + str(value.get("chat_template", ""))
        text = json.dumps(value)
        path.with_name("chat_template.jinja").unlink(missing_ok=True)
    else:
        at = random.choice((0, len(text), text.find("{% for"), random.randrange(len(text) + 1)))
        text = text[:at] + snippet + text[at:]
    path.write_text(text, "utf-8")
    return snippet


def blind(path: Path, random: Random) -> str:
    """Bytes that are flipped, blanked, cut off or added."""
    data = bytearray(path.read_bytes())
    at = random.randrange(len(data) + 1)
    what = random.choice(("flip", "flip", "blank", "cut", "add"))
    if what == "flip":
        most = min(len(data), random.choice((64, 4096, 10**9)))
        for at in random.choices(range(most), k=random.choice((1, 1, 2, 8))):
            data[at] = random.choice((data[at] ^ 1 << random.randrange(8), random.randrange(256)))
    elif what == "blank":
        size = len(data[at : at + random.choice((1, 16, 512))])
        data[at : at + size] = random.choice((b"\0", b"\xff")) * size
    elif what == "cut":
        at = random.choice((0, 1, 7, 8, 9, len(data) - 1, at))
        del data[at:]
    else:
        data += random.choice((b"\0", b" ", b"}", b"\n{}", random.randbytes(64), b"\0" * 5000, b"[" * 10**6))
    path.write_bytes(data)
    return f"{what} {at}"


NAMES = (
    "model.safetensors", "draft_head.safetensors", "q4_1.blocks", "tokenizer.json",
    "tokenizer.model", "fastslow.json", "config.json", "added_tokens.json", "chat_template.jinja",
    "quant_model_description.json", "model.safetensors.index.json",
)  # fmt: skip


def moved(path: Path, random: Random) -> str:
    """The file is gone, a folder, a link, or there under another name, too, which may mean something."""
    what = random.choice(("gone", "folder", "link", "copy"))
    name = random.choice((f"x{path.name}", *NAMES))
    if what == "copy":
        if name != path.name:
            shutil.copyfile(path, path.with_name(name))
        return name
    others = [str(p) for p in sorted(path.parent.iterdir()) if p != path]
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "link":
        name = random.choice((path.name, "nowhere", "/dev/null", "/dev/zero", ".", *others))
        path.symlink_to(name)
        what += f" to {Path(name).name}"
    return what


CHANGES: tuple[tuple[str, Callable[[Path, Random], str]], ...] = (
    *[(".json", json_value)] * 4, (".json", json_twice), ("tokenizer_config.json", template_snippet),
    (".jinja", template_snippet), *[(".safetensors", tensor_header)] * 4, *[(".safetensors", tensor_entry)] * 3,
    (".safetensors", tensor_values), (".blocks", tensor_header), (".blocks", tensor_entry),
    *[(".gguf", gguf_number)] * 3, (".gguf", gguf_text),
)  # fmt: skip
