"""What a verification rule is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastslow.engine.types import Certain, Floats, Tree

Laws = Sequence[Floats | Certain]
"""n+1 laws of a tree of n nodes: after the last committed token, then after each node."""

Place = Callable[[int], np.random.Generator]
"""Accepted tokens so far -> the uniform stream of that place in the request's text."""

Rule = Callable[[Tree, Laws, Place], tuple[list[int], int]]
"""(tree, its laws, where draws come from) -> accepted nodes, root to leaf, and one more token.

A rule is exact if these tokens, and tokens of the target's laws after them, are jointly of the
target's law, whatever was drafted. For *sampled* trees that asks of the drafter:

- `probs[i]` is the law of node i given the text, its ancestors, and its earlier siblings with all
  that hangs off them. What hangs where may depend on those nodes, never on the node's own token.
- The draws of a step are new ones. A rule that looks at a whole branch before it decides (`block`)
  has learned something of every token of it, so a uniform number behind a refused token must not
  come back in the next step's draft. A stream addressed by the *first* place that the step drafts
  is new in each step; streams addressed by each token's own place are not.
"""
