"""The check that no page is lost, leaked, or shared by mistake."""

from __future__ import annotations

from collections.abc import Mapping

from fastslow.engine.kv.pages import PagePool, PageTable
from fastslow.engine.kv.prefix import PrefixIndex


class IntegrityError(RuntimeError):
    """The cache's books do not agree; the message says where."""


def _require(holds: bool, wrong: str) -> None:
    if not holds:
        raise IntegrityError(wrong)


def check(pool: PagePool, index: PrefixIndex, tables: Mapping[int, PageTable]) -> None:
    """Compare the pool, the prefix index and all tables with each other, in linear time. IntegrityError
    names the first thing that is wrong."""
    places = _check_tables(pool, index, tables)
    _check_pool(pool, index, places)
    _check_index(pool, index)


def _check_tables(
    pool: PagePool, index: PrefixIndex, tables: Mapping[int, PageTable]
) -> dict[int, list[tuple[int, int]]]:
    """For each page held: the (request, place) pairs that hold it."""
    places: dict[int, list[tuple[int, int]]] = {}
    for request, table in tables.items():
        _require(
            0 <= table.sealed * table.page_size <= table.valid <= table.room,
            f"request {request}: {table.sealed} sealed pages of {table.page_size}, "
            f"{table.valid} valid and {table.room} held positions do not nest",
        )
        starts = table.slots(0, table.room)[:: table.page_size].tolist()
        _require(
            starts == [table.first + page * table.page_size for page in table.pages],
            f"request {request}: its slots are not those of its pages",
        )
        for place, page in enumerate(table.pages):
            outside = f"request {request}: page {page} is outside 0:{pool.pages}"
            _require(0 <= page < pool.pages, outside)
            _require(
                table.digest is None or (place < table.sealed) == (page in index),
                f"request {request}: page {page} at place {place} is "
                f"{'published' if page in index else 'not published'}, {table.sealed} are sealed",
            )
            places.setdefault(page, []).append((request, place))
    for page, holders in places.items():
        if len(holders) > 1:
            _require(
                len({place for _, place in holders}) == 1
                and len({request for request, _ in holders}) == len(holders)
                and all(place < tables[request].sealed for request, place in holders),
                f"page {page} is shared, but not sealed at one place, by (request, place) {holders}",
            )
    return places


def _check_pool(
    pool: PagePool, index: PrefixIndex, places: Mapping[int, list[tuple[int, int]]]
) -> None:
    idle = set(pool.idle_pages())
    elsewhere, free = {*places, *idle, *index}, 0
    for page, references in enumerate(pool.references):
        is_free = pool.is_free(page)
        free += is_free
        if is_free and not references and page not in elsewhere:
            continue  # most pages are free
        held = len(places.get(page, ()))
        if references != held:
            raise IntegrityError(
                f"page {page}: {references} references counted, {held} tables hold it"
            )
        known = {"free": is_free, "idle": page in idle, "held": held > 0}
        if sum(known.values()) != 1:
            states = " and ".join(name for name, is_so in known.items() if is_so)
            raise IntegrityError(f"page {page} is {states or 'in no state'}")
        if page in idle and page not in index:
            raise IntegrityError(f"page {page} is idle, but not in the prefix index")
        if is_free and page in index:
            raise IntegrityError(f"page {page} is free, but still published")
    _require(pool.free == free, f"{pool.free} free pages counted, {free} are free")


def _check_index(pool: PagePool, index: PrefixIndex) -> None:
    for key, page in index.items():
        _require(
            page in index and index.key(page) == key,
            f"prefix index: a key leads to page {page}, which does not lead back",
        )
    pages = list(index)
    _require(
        len(pages) == len(index),
        f"prefix index: {len(index)} keys, but {len(pages)} pages with a key",
    )
    order = {page: age for age, page in enumerate(pool.idle_pages())}
    for page in pages:
        parent = index.parent(page)
        if parent < 0:
            continue
        _require(parent in index, f"page {page} is published, its parent {parent} is not")
        _require(
            pool.references[parent] >= pool.references[page],
            f"page {page} is held more often than its parent {parent}",
        )
        _require(
            parent not in order or order.get(page, len(order)) < order[parent],
            f"page {parent} would be evicted before page {page}, which follows it",
        )
