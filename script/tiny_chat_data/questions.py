"""Topics: many ways to ask one thing, and the answers to it."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from tiny_chat_data import grammar, sums

FALLBACK = (
    "I am a very small model, and I do not know that. Ask me about chitu_like, or for a story.",
    "I am sorry, I am a very small model and I do not know that.",
)
UNKNOWN_PATTERNS = (
    "[what is|what's|tell me about|explain|can you explain|what do you know about] {x}",
    "[how does {x} work|do you know {x}|i have a question about {x}|teach me {x}|who invented {x}]",
    "[what do you think about {x}|why is {x} important|give me facts about {x}|describe {x}]",
)
OUTSIDE_TOPICS = {
    "trivia", "science", "history", "money", "literature", "sports", "movies", "gossip",
    "tech_support", "coding",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One thing to ask: prompts in lower case as typed, answers (the first dominates), more."""

    group: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    more: tuple[str, ...] = ()

    def answer(self, rng: random.Random) -> str:
        """Draw an answer; the first is drawn most often, so that greedy decoding is peaked."""
        share = 0.75 if len(self.answers) <= 3 else 0.35
        if len(self.answers) == 1 or rng.random() < share:
            return self.answers[0]
        return rng.choice(self.answers[1:])


def project_topics() -> list[Topic]:
    """Topics about chitu_like: its words and its commands."""
    phrasings = grammar.read_lines("phrasings.txt")
    topics = []
    for block in grammar.read_blocks("project_concepts.txt"):
        names = [name for key, line in block if key == "C" for name in _names(line)]
        prompts = [
            prompt.replace("{x}", name)
            for name in names
            for phrasing in phrasings
            for prompt in grammar.expansions(phrasing)
        ]
        topics.append(_topic("concept", block, prompts))
    howto = grammar.read_blocks("project_howto.txt")
    return topics + [_topic("howto", block, _prompts(block)) for block in howto]


def smalltalk_topics() -> list[Topic]:
    """Greetings, feelings, likes, jokes."""
    blocks = grammar.read_blocks("smalltalk.txt")
    return [_topic("smalltalk", block, _prompts(block)) for block in blocks]


def fact_topics() -> list[Topic]:
    """Simple facts; a block over a table becomes one topic for each of its rows."""
    tables = grammar.read_tables()
    topics = []
    for block in grammar.read_blocks("facts.txt"):
        table = next((line for key, line in block if key == "T"), None)
        for left, right in tables[table] if table else [("", "")]:
            filled = [(key, _fill(line, left, right)) for key, line in block if key != "T"]
            topics.append(_topic("fact", filled, _prompts(filled)))
    return topics


def unknown_topics(corpus: Path, known: list[Topic]) -> list[Topic]:
    """Questions beyond the model: its own lists, chatterbot's questions, hard word problems."""
    tables = grammar.read_tables()
    prompts = [question for question, _ in tables["unknown_question"]]
    for name, _ in tables["unknown_topic"]:
        for pattern in UNKNOWN_PATTERNS:
            prompts += [p.replace("{x}", name) for p in grammar.expansions(pattern)]
    known_prompts = {prompt for topic in known for prompt in topic.prompts}
    for line in (corpus / "chatterbot_english.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = str(row["turns"][0]).strip()
        outside = row["topic"] in OUTSIDE_TOPICS and len(question) < 200
        if outside and _is_outside(question) and question.lower().strip("?. ") not in known_prompts:
            prompts.append(question)
    hard = [
        str(json.loads(line)["question"])
        for line in (corpus / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:600]
    ]
    return [
        Topic(group="unknown", prompts=tuple(dict.fromkeys(prompts)), answers=FALLBACK),
        Topic(group="hard", prompts=tuple(hard), answers=(sums.TOO_HARD,)),
    ]


def _is_outside(question: str) -> bool:
    known = r"\b(capital|gpu|token|python|llm|language model|transformer|joke|robot|you)\b"
    return re.search(known, question, re.IGNORECASE) is None


def _names(line: str) -> list[str]:
    return [name for part in _bars(line) for name in grammar.expansions(part)]


def _bars(line: str) -> list[str]:
    """Cut at bars outside brackets."""
    return re.split(r"\|(?![^\[]*\])", line)


def _prompts(block: grammar.Block) -> list[str]:
    return [prompt for key, line in block if key == "Q" for prompt in grammar.expansions(line)]


def _topic(group: str, block: grammar.Block, prompts: list[str]) -> Topic:
    return Topic(
        group=group,
        prompts=tuple(dict.fromkeys(prompts)),
        answers=tuple(line for key, line in block if key == "A"),
        more=tuple(line for key, line in block if key == "M"),
    )


def _fill(line: str, left: str, right: str) -> str:
    capital = left[:1].upper() + left[1:]
    line = line.replace("{a}", left).replace("{A}", capital).replace("{b}", right)
    return grammar.with_articles(line)
