"""Word problems with drawn names, things and numbers."""

from __future__ import annotations

from random import Random

NAMES = (
    "Amara Ben Carla Dmitri Elena Farid Grace Hiro Ines Jonas Kavya Liam Mina Noah Olga Pablo Quinn Rosa "
    "Samir Tara Umar Vera Wei Ximena Yusuf Zoe Anton Bella Cyril Dora Emil Freya Gustav Hana Igor Julia"
).split()
THINGS = (
    "apples marbles books stamps cookies pencils eggs tickets shells cards balloons oranges coins toys "
    "muffins roses bottles candles chairs plates shirts buttons bricks photos melons"
).split()
PLACES = "a bakery|a farm|a school|a library|a garden centre|a toy shop|a factory|a museum".split("|")
PATTERNS = (
    "{a} has {x} {t}. {b} gives {a} {y} more, and then {a} loses {z} of them. How many {t} does {a} have now?",
    "{p1} sells {t} for ${s} each. On Monday it sold {x} of them and on Tuesday {k} times as many. How much "
    "money did it make on both days together?",
    "{a} reads {y} pages a day. The book has {big} pages. After {s} days, how many pages are left to read?",
    "{a} earns ${y} an hour and works {s} hours a day, {d} days a week. {a} spends ${z} a week on food. How "
    "much money is left after {k} weeks?",
    "A train travels at {big} miles per hour for {s} hours, then at {x} miles per hour for {k} hours. How far "
    "does it travel in total?",
    "{a} bought {s} boxes of {t}. Each box holds {y} of them. {a} shares them equally among {k} friends. How "
    "many {t} does each friend get, and how many are left over?",
    "There are {big} students in a school. {pct}% of them walk to school and half of the others take the bus. "
    "How many students take the bus?",
    "{a} is {k} times as old as {b}. In {s} years, {b} will be {x} years old. How old is {a} now?",
    "A recipe needs {s} cups of flour for {y} cookies. {a} wants to bake {big} cookies. How many cups of flour "
    "are needed?",
    "{a}, {b} and {c} collect {t}. {a} has {x} of them, {b} has {y} fewer than {a}, and {c} has {k} times as "
    "many as {b}. How many {t} do they have altogether?",
    "A shirt costs ${x}. It is on sale for {pct}% off, and {a} has a coupon for ${s} more. How much does {a} pay?",
    "{a} fills a tank of {big} litres. The tap gives {s} litres a minute, but {k} litres a minute leak out. How "
    "long does it take to fill the tank?",
    "{p1} has {s} rows of {t} with {y} in each row. If {z} of them are broken, how many are fine?",
    "{a} saves ${s} in the first week, and each week saves ${k} more than the week before. How much has {a} "
    "saved after {d} weeks?",
    "{a} runs {s} miles every morning and {k} miles every evening. How many miles does {a} run in {y} days?",
    "The sum of two numbers is {big} and one of them is {x}. What is {k} times the other number?",
    "{a} and {b} share {big} {t} in the ratio {k}:{s}. How many does {b} get?",
    "A rectangle is {x} metres long and {y} metres wide. {a} puts a fence around it that costs ${s} a metre. "
    "What does the fence cost?",
    "{a} pays ${x} for {k} pizzas and {s} drinks. Each drink costs ${d}. What does one pizza cost?",
    "{p1} opened with {big} {t}. In the first hour it sold {pct}% of them, in the second hour {z}. How many {t} "
    "remain?",
    "A phone plan costs ${y} a month and ${d} for each gigabyte above {s}. {a} used {x} gigabytes. How much is "
    "the bill?",
    "{a} made {y} bracelets on Friday, twice as many on Saturday, and {k} fewer than that on Sunday. Each sells "
    "for ${s}. How much money can {a} make?",
    "{a} weighs {big} pounds and loses {k} pounds a month. How much does {a} weigh after {s} months?",
    "If {s} workers build a wall in {y} days, how many days do {k} workers need?",
    "{a} walks {d} blocks to the store, then {s} blocks to {b}'s house, and the same way back, {k} times a "
    "week. How many blocks is that in a week?",
)  # fmt: skip
SIMPLE = (
    "What is {x} times {s}?", "Solve for x: {k}x + {y} = {big}", "What is {pct}% of {big}?", "Compute {x} + {y} * {s}.",
    "What is the average of {x}, {y} and {z}?", "Is {x} a prime number? Explain.", "Simplify the fraction {y}/{big}.",
    "Find the area of a circle with radius {s}.", "Convert {x} kilometres to miles.", "What is the next number: "
    "{k}, {y}, {x}, ...?", "Factor the expression x^2 + {y}x + {z}.", "How many minutes are in {s} days?",
)  # fmt: skip
ENDS = ("", "", "", "", " Think step by step.", " Show your work.", " Explain your answer.")


def maths(random: Random) -> str:
    """One problem."""
    a, b, c = random.sample(NAMES, 3)
    place = random.choice(PLACES)
    pattern = random.choice(SIMPLE if random.random() < 0.12 else PATTERNS)
    text = pattern.format(
        a=a, b=b, c=c, t=random.choice(THINGS), p1=place[0].upper() + place[1:],
        x=random.randint(15, 95), y=random.randint(6, 40), z=random.randint(2, 14),
        s=random.randint(3, 12), k=random.randint(2, 5), d=random.randint(2, 7),
        big=random.randint(8, 60) * 10, pct=random.choice((10, 15, 20, 25, 30, 40, 50, 60, 75)),
    )  # fmt: skip
    return text + random.choice(ENDS)
