"""Simple arithmetic, comparing and counting: every call makes one question with its answer."""

import random

from tiny_chat_data import grammar

PATTERNS = grammar.read_patterns("sums.txt")
WORDS = PATTERNS["numbers"][0].split(" ")
THINGS = PATTERNS["things"][0].split(" ")
TOO_HARD = "That is too hard for me. I am a very small model and can only do small sums."
BIGGER = ("bigger", "larger", "greater", "more")


def make_sum(rng: random.Random, names: list[str]) -> tuple[str, str]:
    """Draw a question about numbers and its answer."""
    makers = (_add, _subtract, _multiply, _divide, _compare, _count, _neighbour, _parity)
    if rng.random() < 0.04:
        return _too_hard(rng)
    if rng.random() < 0.08:
        return _word_problem(rng, names)
    return rng.choices(makers, (30, 22, 18, 5, 8, 7, 6, 4))[0](rng)


def _too_hard(rng: random.Random) -> tuple[str, str]:
    small = {slot: rng.randint(0, 20) for slot in "abc"}
    large = {slot: rng.randint(201, rng.choice((999, 9999, 99999))) for slot in "de"}
    return rng.choice(PATTERNS["too_hard"]).format(**small, **large), TOO_HARD


def _shown(number: int, in_words: bool) -> str:
    return WORDS[number] if in_words and 0 <= number <= 20 else str(number)


def _ask(rng: random.Random, patterns: list[str], a: int, b: int) -> str:
    in_words = rng.random() < 0.15
    return rng.choice(patterns).format(a=_shown(a, in_words), b=_shown(b, in_words))


def _add(rng: random.Random) -> tuple[str, str]:
    top = rng.choice((10, 20, 20, 50, 100))
    a, b = rng.randint(0, top), rng.randint(0, top)
    return _ask(rng, PATTERNS["add"], a, b), f"{a} + {b} = {a + b}."


def _subtract(rng: random.Random) -> tuple[str, str]:
    top = rng.choice((10, 20, 20, 50, 100))
    a, b = rng.randint(0, top), rng.randint(0, top)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    return _ask(rng, PATTERNS["subtract"], a, b), f"{a} - {b} = {a - b}."


def _multiply(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return _ask(rng, PATTERNS["multiply"], a, b), f"{a} * {b} = {a * b}."


def _divide(rng: random.Random) -> tuple[str, str]:
    quotient, b = rng.randint(0, 12), rng.randint(1, 12)
    return _ask(rng, PATTERNS["divide"], quotient * b, b), f"{quotient * b} / {b} = {quotient}."


def _compare(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(rng.choice((11, 21, 101))), 2)
    high, low = max(a, b), min(a, b)
    kind = rng.randrange(4)
    if kind == 0:
        word = rng.choice(BIGGER)
        pattern = rng.choice(("which is {w}, {a} or {b}", "what is {w}, {a} or {b}"))
        return pattern.format(w=word, a=a, b=b), f"{high} is bigger than {low}."
    if kind == 1:
        pattern = rng.choice(("which is smaller, {a} or {b}", "what is less, {a} or {b}"))
        return pattern.format(a=a, b=b), f"{low} is smaller than {high}."
    if kind == 2:
        word = rng.choice(BIGGER)
        start = f"Yes, {a} is" if a > b else f"No, {a} is not"
        return f"is {a} {word} than {b}", f"{start} bigger than {b}."
    start = f"Yes, {a} is" if a < b else f"No, {a} is not"
    word = rng.choice(("smaller", "less"))
    return f"is {a} {word} than {b}", f"{start} smaller than {b}."


def _count(rng: random.Random) -> tuple[str, str]:
    kind = rng.randrange(3)
    if kind == 0:
        end = rng.choice((3, 5, 5, 7, 8, 10, 10, 10, 12, 15, 20, 20, 6, 4))
        pattern = rng.choice(
            ("count to {n}", "count from 1 to {n}", "can you count to {n}", "count up to {n}")
        )
        return pattern.format(n=_shown(end, rng.random() < 0.3)), _listed(range(1, end + 1))
    if kind == 1:
        start = rng.randint(0, 30)
        end = start + rng.randint(2, 10)
        return f"count from {start} to {end}", _listed(range(start, end + 1))
    start = rng.randint(3, 12)
    pattern = rng.choice(("count backwards from {n}", "count down from {n}", "count from {n} to 1"))
    return pattern.format(n=start), _listed(range(start, 0, -1))


def _listed(numbers: range) -> str:
    return ", ".join(map(str, numbers)) + "."


def _neighbour(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(1, rng.choice((20, 100)))
    if rng.random() < 0.6:
        pattern = rng.choice(
            (
                "what comes after {n}",
                "which number comes after {n}",
                "what is the next number to {n}",
            )
        )
        return pattern.format(n=number), f"After {number} comes {number + 1}."
    pattern = rng.choice(("what comes before {n}", "which number comes before {n}"))
    return pattern.format(n=number), f"Before {number} comes {number - 1}."


def _parity(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(0, rng.choice((20, 100)))
    if rng.random() < 0.5:
        pattern = rng.choice(
            ("is {n} even or odd", "is {n} even", "is {n} odd", "is {n} an odd number")
        )
        return pattern.format(n=number), f"{number} is {'odd' if number % 2 else 'even'}."
    number = rng.randint(1, 50)
    if rng.random() < 0.5:
        pattern = rng.choice(("what is double {n}", "what is twice {n}", "double {n}"))
        return pattern.format(n=number), f"Twice {number} is {2 * number}."
    pattern = rng.choice(("what is half of {n}", "half of {n}"))
    return pattern.format(n=2 * number), f"Half of {2 * number} is {number}."


def _word_problem(rng: random.Random, names: list[str]) -> tuple[str, str]:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    name, things = rng.choice(names), rng.choice(THINGS)
    if rng.random() < 0.5:
        question = rng.choice(PATTERNS["more"]).format(a=a, b=b, c=name, n=things)
        return question, f"{a} + {b} = {a + b}, so the answer is {a + b}."
    a, b = max(a, b), min(a, b)
    question = rng.choice(PATTERNS["fewer"]).format(a=a, b=b, c=name, n=things)
    return question, f"{a} - {b} = {a - b}, so the answer is {a - b}."
