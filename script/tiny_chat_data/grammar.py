"""The little notations of the text files: `[a|b]` choices, blocks, word lists, tables."""

import functools
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
Block = list[tuple[str, str]]


def expansions(pattern: str) -> list[str]:
    """Give every text that a pattern stands for: `[a|b] c` is "a c" and "b c"; brackets nest."""
    return list(dict.fromkeys(_tidy(text) for text in _sequence(pattern)))


def choose(pattern: str, rng: random.Random) -> str:
    """Give one text that a pattern stands for."""
    innermost = re.compile(r"\[([^\[\]]*)\]")
    while innermost.search(pattern):
        pattern = innermost.sub(lambda match: rng.choice(match[1].split("|")), pattern)
    return _tidy(pattern)


def with_articles(text: str) -> str:
    """Turn "a" into "an" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeioAEIO]|u[^n])", r"\1n ", text)


def read_lines(name: str) -> list[str]:
    """Read the lines of a data file that are neither empty nor comments."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("# ")]


def read_blocks(name: str) -> list[Block]:
    """Read blocks of `K: text` lines parted by empty lines; a line without a key continues."""
    blocks: list[Block] = []
    for chunk in (FOLDER / name).read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in chunk.splitlines() if line.strip() and not line.startswith("# ")]
        block: Block = []
        for line in lines:
            match = re.match(r"([A-Z]): (.*)", line)
            block.append((match[1], match[2]) if match else ("", line))
        if block:
            blocks.append(block)
    return blocks


def choose_each_line(text: str, rng: random.Random) -> str:
    """Choose line by line, so that line breaks stay."""
    return "\n".join(choose(line, rng) for line in text.splitlines())


@functools.cache
def read_plots() -> tuple[Block, ...]:
    """Read the story plots once."""
    return tuple(read_blocks("stories.txt"))


def read_patterns(name: str) -> dict[str, list[str]]:
    """Read a file of `kind: pattern` lines: kind -> all texts of its patterns."""
    patterns: dict[str, list[str]] = {}
    for line in read_lines(name):
        kind, pattern = line.split(": ", 1)
        patterns.setdefault(kind, []).extend(expansions(pattern))
    return patterns


def read_words() -> dict[str, list[str]]:
    """Read words.txt: list name -> words."""
    pairs = (line.split(": ", 1) for line in read_lines("words.txt"))
    return {name: entries.split(", ") for name, entries in pairs}


def read_tables() -> dict[str, list[tuple[str, str]]]:
    """Read tables.txt: table name -> rows of two columns (the second is '' in a plain list)."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for line in read_lines("tables.txt"):
        name, entries = line.split(": ", 1)
        rows = (entry.partition("=") for entry in entries.split("; "))
        tables[name] = [(left.strip(), right.strip()) for left, _, right in rows]
    return tables


def _tidy(text: str) -> str:
    return re.sub(r" +([,?]|$)", r"\1", re.sub(r" {2,}", " ", text)).strip()


def _sequence(pattern: str) -> Iterator[str]:
    parts = [_choices(part) for part in _split(pattern)]
    return ("".join(combination) for combination in itertools.product(*parts))


def _choices(part: str) -> list[str]:
    if not part.startswith("["):
        return [part]
    alternatives = _split_top(part[1:-1])
    return [text for alternative in alternatives for text in _sequence(alternative)]


def _split(pattern: str) -> list[str]:
    """Cut a pattern into literal pieces and whole top-level brackets."""
    parts, depth, piece = [], 0, ""
    for char in pattern:
        if char == "[" and depth == 0:
            parts.append(piece)
            piece = ""
        depth += {"[": 1, "]": -1}.get(char, 0)
        piece += char
        if char == "]" and depth == 0:
            parts.append(piece)
            piece = ""
    return [*parts, piece]


def _split_top(text: str) -> list[str]:
    """Cut at the bars that stand outside inner brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts
