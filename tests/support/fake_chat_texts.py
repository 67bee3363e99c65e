"""What the fake chat server says."""

from __future__ import annotations

import re
from itertools import cycle, islice

THOUGHT = """The list is sorted, so halving works. Each comparison rules out half of what is left.
For a million entries that is about twenty comparisons, since 2 to the power of 20 is 1,048,576.
An empty list needs care: the loop should not run at all.
"""
ANSWER = """**Binary search** needs about *20 comparisons* for a million sorted entries: every one rules out half of what is left.

```python
def find(values: list[int], wanted: int) -> int:
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low
```

What to keep in mind:

1. The list must be sorted, else the answer means nothing.
2. `low` is where the value stands, or where it would have to be put in:
   - an empty list gives 0,
   - a value above all others gives `len(values)`.
3. Python has it ready-made as `bisect.bisect_left`.

| entries | comparisons |
|--------:|------------:|
| 1,000 | 10 |
| 1,000,000 | 20 |
"""
HOSTILE = """<img src=x onerror="window.hurt=1"><script>window.hurt=2</script>

[click me](javascript:window.hurt=3) ![x](http://192.0.2.1/a.png) <a href="javascript:hurt">a</a>

```"><script>window.hurt=4</script>
</code></pre><script>window.hurt=5</script>
```

`<svg onload=window.hurt=6>` **<b onmouseover=window.hurt=7>bold</b>**

| <iframe src="http://192.0.2.1"></iframe> | b |
|---|---|
| </td><script>window.hurt=8</script> | __proto__ |
"""
WORDS = [
    "the",
    "scheduler",
    "takes",
    "what",
    "waits,",
    "runs",
    "one",
    "step",
    "for",
    "all",
    "requests,",
    "and",
    "gives",
    "each",
    "its",
    "tokens;",
    "a",
    "draft",
    "that",
    "the",
    "model",
    "would",
    "have",
    "said",
    "itself",
    "costs",
    "one",
    "row",
    "and",
    "saves",
    "one",
    "step.",
    "",
]


def prose(tokens: int) -> str:
    """A text of so many words, in paragraphs, with a heading, a list or some code now and then."""
    words = islice(cycle(WORDS[:-1]), tokens)
    parts: list[str] = []
    for i, word in enumerate(words):
        match i % 240:
            case 0:
                parts.append(f"\n\n## Part {i // 240 + 1}\n\n{word}")
            case 80 | 100:
                parts.append(f"\n- **{word}**")
            case 120:
                parts.append(f"\n\n```python\n{word}")
            case 160:
                parts.append(f"\n```\n\n{word}")
            case _:
                parts.append((" \n" if i % 12 == 0 and 120 < i % 240 < 160 else " ") + word)
    return "".join(parts).strip()


CODE = (
    "```python\n" + "\n".join(f"x_{i} = compute({i}, x_{i - 1})" for i in range(1, 600)) + "\n```\n"
)


def tokens_of(text: str) -> list[str]:
    """The text in pieces of a word with the space before it."""
    return re.findall(r"\s*\S+|\s+$", text)
