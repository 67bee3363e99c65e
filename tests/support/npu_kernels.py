"""The operators of torch_npu, on the CPU, as their documentation has them.

Defined from the schemas of torch_npu itself (`data/npu_schemas.json`), so a call that would not bind there
does not bind. Every kernel also asserts what the documentation says the real one needs, and what a real
one leaves undefined is NaN. Written for being read beside the documentation: loops, no tricks.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).parent / "data" / "npu_schemas.json"
SCHEMAS: list[str] = json.loads(FILE.read_text())["schemas"]
NZ = 29


@dataclass
class Chip:
    """The chip that is simulated. exact: float32 is let through where real kernels have none."""

    name: str = "Ascend910B1"
    exact: bool = False

    @property
    def small(self) -> bool:
        return self.name.startswith("Ascend310P")

    def floats(self, *also: torch.dtype) -> tuple[torch.dtype, ...]:
        own = (torch.float16,) if self.small else (torch.float16, torch.bfloat16)
        return (*own, *also, *((torch.float32,) if self.exact else ()))


CHIP = Chip()
_fractal: set[int] = set()  # addresses of weights in fractal order
calls: dict[str, int] = {}  # how often each operator ran


def undefined(like: Tensor) -> Tensor:
    return torch.full_like(like, torch.nan)


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    assert input.dtype in CHIP.floats(torch.float32) and gamma.shape == input.shape[-1:]
    assert gamma.dtype == input.dtype or (gamma.dtype == torch.float32 and not CHIP.small)
    assert not CHIP.small or input.shape[-1] * input.element_size() >= 32
    x = input.float()
    scale = (x.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x * scale * gamma.float()).to(input.dtype), scale


def npu_add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    assert x1.dtype == x2.dtype == gamma.dtype and x1.shape == x2.shape and x1.numel()
    total = x1 + x2
    out, scale = npu_rms_norm(total, gamma, epsilon)
    return out, undefined(scale) if CHIP.small else scale, total


def npu_swiglu(input: Tensor, dim: int = -1) -> Tensor:
    assert input.dtype in CHIP.floats(torch.float32) and input.is_contiguous()
    gate, up = input.float().chunk(2, dim)
    return (gate * torch.sigmoid(gate) * up).to(input.dtype)


def npu_rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    assert rotary_mode == "half" and rotate is None
    assert input.dim() in (3, 4) and r1.dim() == r2.dim() == input.dim() and input.dtype == r1.dtype == r2.dtype
    assert input.shape[-1] % 2 == 0 and input.shape[-1] < 896 and input.shape[-2] < 1000
    assert not CHIP.small or (input.dim() == 4 and input.shape[-1] == 128)
    half = input.shape[-1] // 2
    return input * r1 + torch.cat((-input[..., half:], input[..., :half]), -1) * r2


def npu_moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    active_num: int = -1,
    expert_num: int = -1,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    active_expert_range: Any = (),
    **others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows copied by ascending expert, earlier rows first; `row_idx` says where (row, k) went."""
    assert x.dtype in CHIP.floats(torch.float32) and expert_idx.dtype == torch.int32
    assert not others and expert_tokens_num_flag and expert_tokens_num_type in (0, 1)
    rows, each = expert_idx.shape
    first, last = active_expert_range
    assert 0 <= first < last <= expert_num <= 10240 and active_num == rows * each
    assert not CHIP.small or x.shape[-1] % 16 == 0
    assert int(expert_idx.min()) >= 0 and int(expert_idx.max()) < expert_num
    flat = expert_idx.flatten()
    order = [i for i in flat.argsort(stable=True).tolist() if first <= int(flat[i]) < last]
    out = undefined(x.new_empty(rows * each, x.shape[1]))
    places = torch.full((rows * each,), -1, dtype=torch.int32)
    out[: len(order)] = x[[entry // each for entry in order]]
    places[order] = torch.arange(len(order), dtype=torch.int32)
    counts = torch.bincount(flat[order] - first, minlength=last - first)
    if CHIP.small or expert_tokens_num_type == 0:
        counts = counts.cumsum(0)
    return out, places, counts, undefined(torch.empty(rows * each))


def npu_grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    *,
    scale: list[Tensor] | None = None,
    per_token_scale: list[Tensor] | None = None,
    group_list: Tensor | None = None,
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    output_dtype: int | None = None,
    **others: Any,
) -> list[Tensor]:
    """Group e's rows times weight[e]. What belongs to no group is not written."""
    assert len(x) == len(weight) == 1 and split_item in (2, 3) and group_type == 0 and not others
    (rows,), (experts,) = x, weight
    assert group_list is not None and group_list.dtype == torch.int64
    assert len(group_list) == len(experts) <= 1024 and rows.is_contiguous()
    assert rows.shape[1] == experts.shape[1] < 65536 and experts.shape[2] < 65536
    if scale is None:
        assert per_token_scale is None
        floats = CHIP.floats(*(() if CHIP.small else (torch.float32,)))
        assert rows.dtype == experts.dtype and rows.dtype in floats
        out_dtype = rows.dtype
        if CHIP.small:
            assert experts.shape[2] % 16 == 0 and experts.data_ptr() in _fractal
    else:
        assert not CHIP.small and per_token_scale is not None and rows.dtype == experts.dtype == torch.int8
        out_dtype = torch.bfloat16 if scale[0].dtype == torch.bfloat16 else torch.float16
        assert CHIP.exact or scale[0].dtype in (torch.bfloat16, torch.float32)
        assert per_token_scale[0].dtype == torch.float32
    ends = group_list if group_list_type == 0 else group_list.cumsum(0)
    assert int(ends[-1]) <= len(rows) and bool((ends.diff() >= 0).all()) and int(ends[0]) >= 0
    out = undefined(torch.empty(len(rows), experts.shape[2], dtype=out_dtype))
    first = 0
    for e, last in enumerate(ends.tolist()):
        product = rows[first:last].float() @ experts[e].float()
        if scale is not None and per_token_scale is not None:
            product *= scale[0][e].float() * per_token_scale[0][first:last, None]
        out[first:last] = product.to(out_dtype)
        first = last
    return [out]


def npu_moe_finalize_routing(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = 0,
    k: int | None = 1,
) -> Tensor:
    """skip1 + skip2 + sum over k of scale * row. Modes 0, 1 number column by column, 2, 3 row by row."""
    assert not CHIP.small and scales is not None and bias is None
    rows = expanded_permuted_rows
    skips = [skip for skip in (skip1, skip2) if skip is not None]
    assert {x.dtype for x in (scales, *skips)} == {rows.dtype}
    count, each = scales.shape
    places = expanded_src_to_dst_row
    assert places.dtype == torch.int32 and places.shape == (count * each,)
    if drop_pad_mode in (0, 2):
        assert int(places.min()) >= 0
    by_row = places.view(count, each) if drop_pad_mode in (2, 3) else places.view(each, count).T
    total = torch.zeros(count, rows.shape[1])
    for skip in skips:
        total += skip.float()
    for i in range(each):
        total += scales[:, i, None].float() * rows[by_row[:, i].long()].float()
    return total.to(rows.dtype)


def npu_scatter_pa_kv_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, **given: Any
) -> None:
    assert not CHIP.small and given == {"cache_mode": "Norm"} and key.is_contiguous() and value.is_contiguous()
    assert key.dtype == key_cache.dtype and slots.dtype in (torch.int32, torch.int64)
    blocks, size = key_cache.shape[:2]
    assert key_cache.shape[2:] == key.shape[1:] and len(slots) == len(key)
    assert len(slots.unique()) == len(slots), "slots must differ"
    assert int(slots.min()) >= 0 and int(slots.max()) < blocks * size
    blocks_at, places = slots.long() // size, slots.long() % size
    key_cache[blocks_at, places] = key
    value_cache[blocks_at, places] = value


def _is_triangle(mask: Tensor, value: int) -> bool:
    """True where a mask is 2048 by 2048 with this value above the diagonal; some rows stand for all."""
    rows = torch.arange(0, 2048, 273)
    wanted = (torch.arange(2048) > rows[:, None]) * float(value)
    return mask.shape == (2048, 2048) and torch.equal(mask[rows].float(), wanted)


def _softmax(q_QHD: Tensor, keys_SKD: Tensor, values_SKD: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Rows over keys: out [Q, H, D] and the logarithms of the sums, [Q, H, 1].

    causal: the last row sees the last key, the row before it all but that, and so on.
    """
    rows, group = len(q_QHD), q_QHD.shape[1] // keys_SKD.shape[1]
    keys = keys_SKD.float().repeat_interleave(group, 1)
    values = values_SKD.float().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,shd->qhs", q_QHD.float(), keys) * scale
    if causal:
        last = len(keys) - rows + torch.arange(rows)
        scores[(torch.arange(len(keys)) > last[:, None])[:, None].expand_as(scores)] = -torch.inf
    return torch.einsum("qhs,shd->qhd", scores.softmax(-1), values), scores.logsumexp(-1, True)


def npu_fused_infer_attention_score(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """Paged attention in the layout TND: runs of rows, each over its own blocks."""
    assert not CHIP.small, "there is no such kernel on a 310P"
    # arguments that equal their defaults do not arrive
    layout, mode, size = given["input_layout"], given.get("sparse_mode", 0), given["block_size"]
    heads, kv_heads = given.get("num_heads", 1), given["num_key_value_heads"]
    table, mask = given["block_table"], given.get("atten_mask")
    ends, lengths = given["actual_seq_lengths"], given["actual_seq_lengths_kv"]
    known = {
        *("atten_mask", "actual_seq_lengths", "actual_seq_lengths_kv", "block_table"),
        *("num_heads", "scale", "input_layout", "num_key_value_heads", "sparse_mode"),
        *("inner_precise", "block_size", "softmax_lse_flag"),
    }
    assert set(given) <= known, set(given) - known
    assert query.dtype in CHIP.floats() and key.dtype == value.dtype == query.dtype
    assert layout == "TND" and query.dim() == 3 and query.shape[1] == heads
    width = query.shape[2]
    assert width in (128, 192), "without rope TND takes these widths only"
    assert heads % kv_heads == 0 and heads // kv_heads <= 64 and heads <= 256
    assert size % 128 == 0 and 128 <= size <= 512
    assert key.dim() == 3 and key.shape[1:] == (size, kv_heads * width)
    assert table.dtype == torch.int32 and len(table) == len(lengths) == len(ends) <= 4096
    assert all(type(n) is int for n in (*ends, *lengths)), "lengths are host integers"
    assert ends[-1] == len(query) and all(b > a for a, b in zip([0, *ends], ends))
    assert min(lengths) > 0 and max(lengths) <= table.shape[1] * size
    assert mode in (0, 3) and given.get("inner_precise", 0) == 0
    if mode == 3:
        assert mask is not None and mask.dtype == torch.int8
        assert _is_triangle(mask, 1), "1 = masked, above the diagonal"
    else:
        assert mask is None
    out = torch.empty_like(query)
    weights = torch.empty(len(query), heads, 1)
    first = 0
    for run, last in enumerate(ends):
        rows, count = last - first, lengths[run]
        assert rows <= 16 and (mode == 0 or count >= rows)
        blocks = table[run, : -(-count // size)].long()
        assert int(blocks.min()) >= 0 and int(blocks.max()) < len(key)
        keys = key[blocks].reshape(-1, kv_heads, width)[:count]
        values = value[blocks].reshape(-1, kv_heads, width)[:count]
        found, weight = _softmax(query[first:last], keys, values, given["scale"], mode == 3)
        out[first:last], weights[first:last] = found.to(query.dtype), weight
        first = last
    return out, weights if given.get("softmax_lse_flag") else undefined(weights)


def npu_dynamic_quant(input: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
    """Per token."""
    assert not CHIP.small and not others and input.dtype in CHIP.floats()
    step = input.float().abs().amax(-1) / 127
    return (input.float() / step.clamp_min(1e-30)[:, None]).round().clamp(-127, 127).to(torch.int8), step


def npu_quant_matmul(x1: Tensor, x2: Tensor, scale: Tensor, **given: Any) -> Tensor:
    assert not CHIP.small and set(given) == {"pertoken_scale", "output_dtype"}, "the default is int8"
    pertoken_scale: Tensor = given["pertoken_scale"]
    assert x1.dtype == x2.dtype == torch.int8 and x1.shape[1] == x2.shape[0]
    assert scale.dtype == torch.float32 and scale.shape == x2.shape[1:]
    assert pertoken_scale.dtype == torch.float32
    dtype = {5: torch.float16, 6: torch.float32, 15: torch.bfloat16}[given["output_dtype"]]
    assert dtype in CHIP.floats()
    return ((x1.float() @ x2.float()) * scale * pertoken_scale[:, None]).to(dtype)


def npu_format_cast(input: Tensor, acl_format: int, *, customize_dtype: Any = None, input_dtype: Any = None) -> Tensor:
    """The order is not simulated, only that it was asked for."""
    assert acl_format == NZ and input.is_contiguous()
    assert input.dtype in (torch.float16, torch.bfloat16, torch.int8) or CHIP.exact
    cast = input.clone()
    _fractal.add(cast.data_ptr())
    return cast


def _npu_reshape_and_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor
) -> None:
    assert CHIP.small and key.dtype in CHIP.floats() and slot_indices.dtype == torch.int32
    assert key.is_contiguous() and value.is_contiguous()
    blocks, chunks, size, lanes = key_cache.shape
    assert lanes == 16 and chunks * 16 == key[0].numel() and size in (64, 128)
    assert int(slot_indices.min()) >= 0 and int(slot_indices.max()) < blocks * size
    blocks_at, places = slot_indices.long() // size, slot_indices.long() % size
    key_cache[blocks_at, :, places] = key.reshape(-1, chunks, 16)
    value_cache[blocks_at, :, places] = value.reshape(-1, chunks, 16)


def _npu_paged_attention(*given: Any, workspace: Tensor | None = None) -> None:
    """Attend from one row of each text."""
    query, keys, values, kv_heads, heads, scale, table, lengths, out = given
    assert len(query) == len(table) == len(lengths)
    _paged(query, (keys, values), kv_heads, heads, scale, table, lengths, torch.ones_like(lengths), out)


def _npu_paged_attention_splitfuse_v2(*given: Any, mask_type: int | None = 5, out: Tensor) -> None:
    """Runs of rows; the last row of each sees all keys."""
    query, keys, values, table, lengths, mask, sizes, kv_heads, heads, scale = given
    assert mask_type == 5 and mask.dtype in CHIP.floats() and _is_triangle(mask, -10000)
    assert sizes.dtype == torch.int32 and int(sizes.sum()) == len(query)
    _paged(query, (keys, values), kv_heads, heads, scale, table, lengths, sizes, out)


def _paged(
    query: Tensor,
    caches: tuple[Tensor, Tensor],
    kv_heads: int,
    heads: int,
    scale: float,
    table: Tensor,
    lengths: Tensor,
    sizes: Tensor,
    out: Tensor,
) -> None:
    """Runs of `sizes` rows over texts of `lengths` keys in the fractal order."""
    (keys, values), width = caches, query.shape[2]
    assert CHIP.small and query.dtype in CHIP.floats() and keys.dtype == query.dtype
    assert query.shape[1] == heads and heads % kv_heads == 0 and scale > 0
    assert keys.shape == values.shape and keys.shape[2:] in ((128, 16), (64, 16))
    assert keys.shape[1] * 16 == kv_heads * width and table.dtype == lengths.dtype == torch.int32
    size, first = keys.shape[2], 0
    for run, (rows, count) in enumerate(zip(sizes.tolist(), lengths.tolist(), strict=True)):
        assert count >= rows > 0
        blocks = table[run, : -(-count // size)].long()
        k, v = (side[blocks].permute(0, 2, 1, 3).reshape(-1, kv_heads, width)[:count] for side in caches)
        out[first : first + rows] = _softmax(query[first : first + rows], k, v, scale, True)[0].to(out.dtype)
        first += rows


_libraries: list[torch.library.Library] = []


def define() -> None:
    """Make the operators known to torch, once in a process."""
    if _libraries:
        return
    for space in ("npu", "atb"):
        library = torch.library.Library(space, "FRAGMENT")
        for schema in SCHEMAS:
            owner, _, rest = schema.partition("::")
            if owner == space:
                library.define(rest)
                name = rest.partition("(")[0]
                library.impl(name, _counted(name, globals()[name]), "CPU")
        _libraries.append(library)


def _counted(name: str, kernel: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        calls[name] = calls.get(name, 0) + 1
        return kernel(*args, **kwargs)

    return run
