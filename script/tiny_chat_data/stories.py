"""Stories on a topic: from the plots of stories.txt, and from TinyStories."""

import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tiny_chat_data import grammar, names

Words = dict[str, list[str]]
# TinyStories above this length would make chats long; short ones are preferred as answers.
MAX_ANSWER_WORDS = 150


PLAIN_PUNCTUATION = str.maketrans(
    {"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2013": "-", "\u2014": "-"}
)


@dataclass(frozen=True, kw_only=True)
class Story:
    """A story, how its topic is asked for ("a cat"), and whom it is about ("a cat named Mia")."""

    text: str
    topics: tuple[str, ...]
    about: str = ""


def write_story(rng: random.Random, words: Words) -> Story:
    """Write one story from a random plot."""
    block = rng.choice(grammar.read_plots())
    kind = block[0][1]
    text = "\n".join(line for key, line in block if key == "")
    slots, topics, about = _cast(kind, rng, words)
    text = grammar.choose_each_line(text, rng)
    for slot, word in slots.items():
        text = text.replace("{" + slot + "}", word)
    text = re.sub(r"\{(\w+?)2?\}", lambda match: rng.choice(words[match[1]]), text)
    text = re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text, flags=re.M)
    return Story(text=grammar.with_articles(text), topics=topics, about=about)


def _cast(
    kind: str, rng: random.Random, words: Words
) -> tuple[dict[str, str], tuple[str, ...], str]:
    """Choose the actors of a plot: slots, ways to name the topic, and the main actor."""
    slots = _person("child", rng, words, 0.4 if kind == "child" else 0.0) | {
        slot: rng.choice(words[slot])
        for slot in ("place", "thing", "color", "food", "adj", "weather")
    }
    hero_is_boy, friend_is_boy = rng.random() < 0.5, rng.random() < 0.5
    # Made-up names only where the request names the hero: they teach copying.
    is_made_up = rng.random() < 0.25
    gender = "boy" if hero_is_boy else "girl"
    slots["name"] = names.draw_name(rng, words, gender, float(is_made_up))
    slots["fname"] = rng.choice(words["boy" if friend_is_boy else "girl"])
    he, his, him = ("he", "his", "him") if hero_is_boy else ("she", "her", "her")
    slots |= {"he": he, "his": his, "him": him, "He": he.title(), "His": his.title()}
    slots["him2"] = "him" if friend_is_boy else "her"
    slots["friend"] = rng.choice(words["animal"])
    if kind == "hero":
        hero = rng.choice(words[rng.choice(("animal", "animal", "figure"))])
        slots["x"] = hero
        about = f"a {hero} named {slots['name']}"
        named = (about, f"a {hero} called {slots['name']}")
        if is_made_up:
            return slots, named, about
        many = hero + "s" if hero[-1] not in "shyxfe" else f"a {hero}"
        plain = (f"a {hero}", f"a {hero}", hero, many, f"a {slots['adj']} {hero}")
        return slots, (*plain, *named, f"a {hero} and a {slots['friend']}"), about
    if kind == "child":
        name, gender = slots["child"], slots["boygirl"]
        slots["x"] = name
        topics = (f"a {gender} named {name}", name, f"a {gender}", f"a {gender} called {name}")
        return slots, topics, f"a {gender} named {name}"
    thing = slots[kind]
    slots["x"] = thing
    child = f"a child named {slots['child']}"
    if kind == "place":
        return slots, (f"the {thing}", f"a {thing}", f"a day at the {thing}"), child
    return slots, (f"a {thing}", f"a {thing}", f"a {slots['color']} {thing}", thing), child


def _person(prefix: str, rng: random.Random, words: Words, share_made_up: float) -> dict[str, str]:
    if rng.random() < 0.5:
        return {
            prefix: names.draw_name(rng, words, "boy", share_made_up), "boygirl": "boy",
            "che": "He", "cshe": "he", "chis": "his", "chim": "him",
        }  # fmt: skip
    return {
        prefix: names.draw_name(rng, words, "girl", share_made_up), "boygirl": "girl",
        "che": "She", "cshe": "she", "chis": "her", "chim": "her",
    }  # fmt: skip


def read_tiny_stories(corpus: Path) -> list[str]:
    """Read the TinyStories file: one string a story, plain quotes, single line breaks."""
    text = (corpus / "tinystories_2MiB.txt").read_text(encoding="utf-8")
    text = text.translate(PLAIN_PUNCTUATION)
    stories = (re.sub(r"\s*\n\s*", "\n", story).strip() for story in text.split("<|endoftext|>"))
    return [story for story in stories if len(story) > 200 and story.isascii()]


def rename(story: str, rng: random.Random, words: Words) -> str:
    """Give the boys and girls of a story other names, so that it is not learned by heart."""
    for people in (words["boy"], words["girl"]):
        found = [name for name in people if re.search(rf"\b{name}\b", story)]
        fresh = rng.sample([name for name in people if name not in found], len(found))
        for old, new in zip(found, fresh, strict=True):
            story = re.sub(rf"\b{old}\b", new, story)
    return story


def as_story(text: str, words: Words) -> Story:
    """Find what a TinyStory is about: a noun of its beginning that it uses at least three times."""
    nouns = {*words["animal"], *words["figure"], *words["thing"], *words["place"]}
    counts = Counter(re.findall(r"[a-z]+", text))
    common = [noun for noun in sorted(nouns) if counts[noun] >= 3 and noun in text[:120]]
    common.sort(key=lambda noun: -counts[noun])
    return Story(text=text, topics=tuple(f"a {noun}" for noun in common[:2]))
