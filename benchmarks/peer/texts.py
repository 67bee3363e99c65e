"""Prompts of the comparison: running text to continue, and tasks whose answers repeat the prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fastslow.engine.text.vocabulary import Tokenizer

STORY = """The ferry to the island left at six, an hour before the fog. Marta had bought two tickets
out of habit, and now she folded the second one into a small boat and set it on the bench beside
her. The engine coughed, the ropes came in, and the town turned slowly away as if it had other
guests. On the upper deck a man was explaining the tides to his daughter: the moon pulls, he said,
and the sea follows, but it is always a little late. The girl wanted to know what the sea does when
the moon is not looking. Nobody answered her. A gull walked along the rail with the air of an
inspector, stopped before the paper boat, and carried it off. Marta laughed, for the first time
since the letter, and the fog, which had been waiting behind the lighthouse, came down to meet them.
By eight the island was a smell of wet pine and diesel. The harbour master knew her name; he had
known her grandfather too, and the house, and the well behind it that never ran dry. He gave her a
lamp, a key as long as her hand, and advice about the stairs. Then he said that the generator was
hers to start, that the hens belonged to the neighbour, and that in forty years no one had managed
to keep the timer in the kitchen right, so that there was no use in being punctual."""

REPORT = """The council met on Tuesday to decide what to do with the old tram depot. Three plans were
put forward. The first would turn the hall into a covered market with forty stalls, and would cost
two million; traders support it because the present market floods every spring. The second plan is
a library with workshops for repairing bicycles, radios and furniture. It would cost nearly three
million, of which the region has offered to pay half if building starts before the end of next year.
The third plan is to sell the ground to a developer who wants to build ninety flats, a third of them
at a controlled rent. The mayor said that the town could not afford to run both a market and a
library. Residents of the streets nearby complained that none of the plans says where people will
park. An engineer reported that the roof is sound but that the floor is soaked with oil and has to be
cleaned in any case, at a price of three hundred thousand. After four hours the council voted to
clean the floor first, to ask the region for more time, and to come back to the plans in May."""

CODE = """def parse_log(path, level="ERROR"):
    entries = []
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            stamp, found_level, message = line.rstrip("\\n").split(" ", 2)
            if found_level != level:
                continue
            entries.append({"line": number, "time": stamp, "message": message})
    return entries


def count_messages(entries):
    counts = {}
    for entry in entries:
        counts[entry["message"]] = counts.get(entry["message"], 0) + 1
    return sorted(counts.items(), key=lambda pair: -pair[1])"""

TASKS = {
    "copy": f"Repeat the following text word for word, and add nothing.\n\n{STORY[:900]}",
    "summary": f"Summarise this report in five sentences, with its own words.\n\n{REPORT}",
    "code": f"Write this Python code again, with the name `entries` changed to `records`.\n\n{CODE}",
}


def openings(tokenizer: Tokenizer | None, count: int, length: int) -> list[list[int]]:
    """Prompts of exactly `length` tokens that begin at different places of a story. ValueError: the model has no
    tokenizer."""
    if tokenizer is None:
        raise ValueError("the model has no tokenizer, and prompts are texts")
    ids = tokenizer.encode(STORY, add_special=False)
    while len(ids) < 2 * length:
        ids = ids + ids
    places = [i * (len(ids) - length) // max(1, count - 1) for i in range(count)]
    return [ids[place : place + length] for place in places]


def unseen(vocabulary: int, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Prompts of random ids, so that no cache of prefixes holds a part of them."""
    dice = random.Random(seed)
    return [[dice.randrange(vocabulary // 2, vocabulary) for _ in range(n)] for n in lengths]
