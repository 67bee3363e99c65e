"""The check that no page is lost, leaked, or shared by mistake."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain

from fastslow.engine.kv.pages import PagePool, PageTable
from fastslow.engine.kv.prefix import PrefixIndex
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.kv.state.running import StatePlaces
from fastslow.engine.kv.state.windows import WindowPages


class IntegrityError(RuntimeError):
    """The cache's books do not agree; the message says where."""


def check(
    pool: PagePool,
    index: PrefixIndex,
    tables: Mapping[int, PageTable],
    places: StatePlaces | None = None,
    windows: WindowPages | None = None,
) -> None:
    """Compare the pool, the prefix index, all tables, the places of running states and the pages of layers with windows
    with each other, in linear time.
    IntegrityError names the first thing that is wrong."""
    faults = _faults(pool, index, tables)
    if places is not None:
        faults = chain(faults, _state_faults(places, index, tables))
    if windows is not None:
        faults = chain(faults, _window_faults(windows, index, tables))
    if wrong := next(faults, None):
        raise IntegrityError(wrong)


def _faults(pool: PagePool, index: PrefixIndex, tables: Mapping[int, PageTable]) -> Iterator[str]:
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by page, (request, place)
    for request, table in tables.items():
        yield from _table_faults(request, table, pool, index)
        for place, page in enumerate(table.pages):
            places[page].append((request, place))
    for page, holders in places.items():
        alike = len({place for _, place in holders}) == 1
        alike = alike and len({request for request, _ in holders}) == len(holders)
        if len(holders) > 1 and not (alike and all(n < tables[r].sealed for r, n in holders)):
            yield f"page {page} is shared, but not sealed at one place, by (request, place) {holders}"
    idle = {page: age for age, page in enumerate(pool.idle_pages())}
    for page, references in enumerate(pool.references):
        held, is_free = len(places.get(page, ())), pool.is_free(page)
        if references != held:
            yield f"page {page}: {references} references counted, {held} tables hold it"
        if is_free + (page in idle) + (held > 0) != 1:
            known = {"free": is_free, "idle": page in idle, "held": held}
            states = " and ".join(name for name, is_so in known.items() if is_so)
            yield f"page {page} is {states or 'in no state'}"
        if page in idle and page not in index:
            yield f"page {page} is idle, but not in the prefix index"
        if is_free and page in index:
            yield f"page {page} is free, but still published"
    free = sum(map(pool.is_free, range(pool.pages)))
    if pool.free != free:
        yield f"{pool.free} free pages counted, {free} are free"
    for key, page in index.items():
        if page not in index or index.key(page) != key:
            yield f"prefix index: a key leads to page {page}, which does not lead back"
    if (pages := len([*index])) != len(index):
        yield f"prefix index: {len(index)} keys, but {pages} pages with a key"
    for page in index:
        if (parent := index.parent(page)) < 0:
            continue
        if parent not in index:
            yield f"page {page} is published, its parent {parent} is not"
        if pool.references[parent] < pool.references[page]:
            yield f"page {page} is held more often than its parent {parent}"
        if parent in idle and idle.get(page, len(idle)) >= idle[parent]:
            yield f"page {parent} would be evicted before page {page}, which follows it"


def _state_faults(
    places: StatePlaces, index: PrefixIndex, tables: Mapping[int, PageTable]
) -> Iterator[str]:
    held = [table.place for table in tables.values() if table.place >= 0]
    passed = [place for table in tables.values() for place in table.passed.values()]
    kept, own = [*places.snapshots.values(), *passed], places.states.places
    every = sorted([*held, *places.free, *kept, *places.spare])
    apart = max([*held, *places.free], default=-1) < own <= min(places.spare, default=own)
    if not apart or every != list(range(own + places.states.snapshots)):
        yield (
            f"of {own} places of running states requests have {held}, {places.free} are free; of "
            f"{places.states.snapshots} more {places.spare} are; snapshots are at {kept}"
        )
    for page in places.snapshots:
        if page not in index:
            yield f"page {page} has a snapshot, but is not published"
    for request, table in tables.items():
        if table.place >= 0 and not 0 <= table.valid - table.folded < UNFOLDED:
            yield f"request {request}: {table.folded} rows are folded in, {table.valid} are valid"


def _window_faults(
    windows: WindowPages, index: PrefixIndex, tables: Mapping[int, PageTable]
) -> Iterator[str]:
    needed = Counter(page for t in tables.values() for page in t.pages[t.passed_pages :])
    cached, given = [*windows.kept, *windows.passed], windows.map.pages
    for page, users in enumerate(windows.users):
        if users != needed[page]:
            yield f"page {page}: {users} requests are counted that need its window, {needed[page]} do"
        if (given[page] > 0) != (users > 0) + cached.count(page):
            yield f"page {page}: its window is at {given[page]}, {users} need it, {cached} are cached"
    every = sorted([*windows.free, *given[given > 0].tolist()])
    if every != list(range(1, windows.map.count)):
        yield f"of {windows.map.count} pages of windows {windows.free} are free, {given} are given"
    yield from (
        f"page {page} is cached with its window, not published"
        for page in cached
        if page not in index
    )


def _table_faults(
    request: int, table: PageTable, pool: PagePool, index: PrefixIndex
) -> Iterator[str]:
    said = f"request {request}: "
    if not 0 <= table.sealed * table.page_size <= table.valid <= table.room:
        yield (
            f"{said}{table.sealed} sealed pages of {table.page_size}, {table.valid} valid and "
            f"{table.room} held positions do not nest"
        )
    starts = table.slots(0, table.room)[:: table.page_size].tolist()
    if starts != [table.first + page * table.page_size for page in table.pages]:
        yield f"{said}its slots are not those of its pages"
    for place, page in enumerate(table.pages):
        if not 0 <= page < pool.pages:
            yield f"{said}page {page} is outside 0:{pool.pages}"
        if table.digest is not None and (place < table.sealed) != (page in index):
            known = "published" if page in index else "not published"
            yield f"{said}page {page} at place {place} is {known}, {table.sealed} are sealed"
