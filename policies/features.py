"""Features of a prompt, computed from its text without a model."""

from __future__ import annotations

import math
import re

from fastslow.policies.mode_router import PromptFacts

LONGEST = 10  # digits of a number that count; longer ones are mostly identifiers
MOST = 3.0  # limit of features that count marks and numbers

LABELS: dict[str, str] = {
    "length": "length",
    "code": "code marks",
    "maths": "maths marks",
    "products": "products and powers",
    "numbers": "numbers",
    "digits": "digits",
    "question": "short question",
    "reasons": "asks for reasons",
    "history": "history",
    "urgency": "latency target",
    "load": "load",
}
"""Every feature, and its name in explanations of a decision."""

WORD = re.compile(r"[一-鿿]|[^\W\d_一-鿿]+|\d+")
NUMBER = re.compile(r"\d[\d,.]*")
DIGITS = re.compile(r"\d+")
CODE = re.compile(
    r"```|\b(?:def|class|import|return|while|elif|lambda|printf?|function|const|void|SELECT)\b"
    r"|[;{}]\s*$|=>|==|\+=|\w\(\)|\b(?:code|program|script|python|javascript|bug|regex|sql)\b"
    r"|代码|程序|函数|算法",
    re.IGNORECASE | re.MULTILINE,
)
MATHS = re.compile(
    r"\d\s*[-+*/^=×÷%<>]|[-+*/^=×÷]\s*\d|[=∑∫√≤≥π]|\\frac|\b(?:solve|calculate|compute|evaluate"
    r"|equation|how many|how much|sum|total|altogether|average|percent|probability|ratio|integral"
    r"|derivative|prime|remainder|twice|half|each|left)\b|计算|多少|方程|概率|平均|一共|总共|求",
    re.IGNORECASE,
)
PRODUCTS = re.compile(
    r"[*×^÷]|\d\s*/\s*\d|\b(?:times|multipl\w+|divid\w+|product|squared?|per|modulo|mod)\b|乘|除|每",
    re.IGNORECASE,
)
REASONS = re.compile(
    r"\b(?:why|how (?:does|do|can|would|did)|explain|prove|proof|compare|derive|step by step|reason"
    r"|trade-?offs?|design|plan)\b|为什么|证明|解释|比较|推导|一步",
    re.IGNORECASE,
)
QUESTION = re.compile(
    r"^\W*(?:who|whom|whose|when|where|which|what(?:'s| is| was| are)?|is|are|was|were|do|does|did"
    r"|can|hi|hello|thanks|thank you|谁|哪|什么|何时|你好|谢谢)",
    re.IGNORECASE,
)
SHORT = 16  # words of a question that hardly contains a task
ENDS = 400  # characters at both ends that are read: a document may stand between instructions


def count_words(text: str) -> int:
    """The number of words; numbers and Chinese characters count as words."""
    return sum(1 for _ in WORD.finditer(text))


def features(facts: PromptFacts) -> dict[str, float]:
    """Every feature of LABELS, about 0 to 10, from the text, the history and the load. Marks count by their
    logarithm; numbers relative to words, since a long text has some without being a calculation."""
    words = count_words(facts.text)
    text = facts.text
    if len(text) > 2 * ENDS:
        text = f"{text[:ENDS]}\n{text[-ENDS:]}"
    maths = _marks(MATHS, text)
    short = words <= SHORT and bool(QUESTION.search(text)) and not maths
    per_ten_words = 10 * sum(1 for _ in NUMBER.finditer(text)) / max(count_words(text), 1)
    target = facts.latency_ms
    lengths = [len(number) for number in DIGITS.findall(text)]
    return {
        "length": math.log2(1 + max(words, facts.words)),
        "code": _marks(CODE, text),
        "maths": maths,
        "products": _marks(PRODUCTS, text),
        "numbers": min(per_ten_words, MOST),
        "digits": float(min(max(lengths, default=0), LONGEST)),
        "question": float(short),
        "reasons": float(bool(REASONS.search(text))),
        "history": math.log2(1 + facts.turns),
        "urgency": 0.0 if target is None else min(max(math.log2(1000 / target), 0.0), 4.0),
        "load": min(max(facts.busy - 1.0, 0.0), 4.0),
    }


def _marks(pattern: re.Pattern[str], text: str) -> float:
    return min(math.log2(1 + sum(1 for _ in pattern.finditer(text))), MOST)
