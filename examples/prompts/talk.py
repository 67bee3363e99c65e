"""Questions, explanations, customer service: patterns filled from lists."""

from __future__ import annotations

from random import Random

TOPICS = (
    "photosynthesis|gravity|the Roman Empire|black holes|inflation|the water cycle|vaccines|the French Revolution|DNA"
    "|volcanoes|the stock market|machine learning|the human heart|plate tectonics|democracy|the Silk Road|bees|coral reefs"
    "|the printing press|sleep|electric cars|Shakespeare|jazz|the Moon|evolution|the internet|coffee|glaciers|the Great Wall"
    "|recycling|chess|nuclear power|the Olympic Games|yoga|antibiotics|solar panels|dinosaurs|the Renaissance|bread"
    "|earthquakes|migration of birds|the Amazon rainforest|black tea|public transport|the immune system|comets|algebra"
).split("|")
PLACES = "Japan|Brazil|Kenya|Norway|India|Canada|Egypt|Peru|Italy|Australia|Vietnam|Mexico|Greece|Iceland|Morocco".split("|")
PATTERNS = (
    "Explain {t} in simple words.", "What is {t}?", "Why is {t} important?", "Write a short paragraph about {t}.",
    "Give me three facts about {t}.", "How does {t} affect everyday life?", "What is the history of {t}?",
    "What are the advantages and disadvantages of {t}?", "Write a short story about {t}.", "List five ideas for a "
    "project about {t}.", "What should I know about {t} before an exam?", "Compare {t} and {u}.", "Who discovered {t}, "
    "and when?", "What is the capital of {p}?", "What is {p} known for?", "Plan a three-day trip to {p}.", "What food is "
    "typical of {p}?", "Write a poem about {t}.", "Describe {t} to a child.", "How can I learn more about {t}?",
    "What are the main causes of {t}?", "Write an email to invite a friend to {p}.", "How long does it take to travel "
    "through {p}?", "What is the largest city in {p}?", "When was {t} first described?", "who invented {t}",
    "how many people live in {p}", "what does {t} mean", "where does {t} come from", "Give me tips about {t}.",
)  # fmt: skip
GOODS = "headphones|laptop|coffee machine|running shoes|phone case|office chair|winter jacket|subscription|camera|printer".split("|")
SERVICE = (
    "My {g} arrived damaged. What can I do?", "I ordered a {g} {n} days ago and it is still not here.", "How do I return a "
    "{g}?", "I was charged twice for my {g}.", "Can I change the address of my order for a {g}?", "My {g} stopped working "
    "after {n} days. Is there a warranty?", "I want to cancel my order of a {g}.", "Write a polite reply to a customer whose "
    "{g} is {n} days late.", "Is the {g} still in stock?", "I received the wrong {g}. My order number is {o}.",
)  # fmt: skip
TASKS = (
    "Summarize: {}", "Summarize the following text in two sentences.\n\n{}", "What is the main idea of this passage?\n{}",
    "{}\n\nGive the key points of the text above.", "Write a short summary of this article:\n{}", "{}\n\nTL;DR:",
)  # fmt: skip


def question(random: Random) -> str:
    """One question or small task."""
    t, u = random.sample(TOPICS, 2)
    return random.choice(PATTERNS).format(t=t, u=u, p=random.choice(PLACES))


def service(random: Random) -> str:
    """What a customer writes."""
    number = random.randint(2, 30)
    return random.choice(SERVICE).format(
        g=random.choice(GOODS), n=number, o=random.randint(10_000, 99_999)
    )


def summary(random: Random, passage: str) -> str:
    """A request to sum up the passage."""
    return random.choice(TASKS).format(passage.strip())
