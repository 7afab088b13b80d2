"""Dialogues: prompts as people type them, put together to units of one or more turns."""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tiny_chat_data import grammar, names, questions, stories, sums

Turn = tuple[str, str]
CONTRACTIONS = (
    ("what is ", "what's "), ("i am ", "I'm "), ("do not ", "don't "), ("it is ", "it's "),
    ("you are ", "you're "), ("how is ", "how's "), ("cannot ", "can't "), ("who is ", "who's "),
)  # fmt: skip
REPHRASINGS = {
    "how do i ": (
        "how can i ", "how to ", "how would i ", "how should i ", "can you tell me how to ",
        "show me how to ", "tell me how to ", "i want to know how to ", "explain how to ", "how i ",
        "what is the way to ", "how does one ", "what do i do to ", "how do you ", "how do we ",
    ),
    "what is ": ("tell me what is ", "do you know what is ", "can you say what is ", "whats "),
    "where is ": ("tell me where is ", "do you know where is ", "where do i find ", "where's "),
    "tell me ": ("can you tell me ", "please tell me ", "could you tell me ", "tell us "),
    "i am ": ("im ", "i think i am ", "well i am ", "i'm "),
    "can you ": ("could you ", "are you able to ", "will you ", "do you know how to "),
    "do you ": ("hey do you ", "tell me, do you ", "i wonder, do you "),
}  # fmt: skip
FILLERS = (
    "actually", "just", "really", "maybe", "briefly", "quickly", "again", "exactly", "now", "then",
    "simply", "kind of", "also", "perhaps", "please", "basically", "here", "properly", "best",
)  # fmt: skip
LEADS = (
    "i was wondering, ", "quick question: ", "just curious, ", "my friend asked me, ", "one question: ",
    "i am new here, ", "excuse me, ", "sorry, but ", "one more thing: ", "listen, ", "by the way, ",
    "great, ", "thanks! ", "good. ", "i have a question. ", "next question: ", "oh, ", "hmm, ",
)  # fmt: skip
TAILS = (
    " in your own words", " for a beginner", " when you have time", " and why should i care", " today",
    ", i am new here", ", i wonder", ", thanks", " in short", " in detail", ", my friend", " then",
    ", do you know", ", can you tell me", " exactly", ", i need to know", ", quickly", " if i may ask",
)  # fmt: skip
OPENERS = (
    "please ",
    "hi, ",
    "hello, ",
    "hey, ",
    "ok, ",
    "so ",
    "and ",
    "now ",
    "well, ",
    "tell me, ",
)
QUESTION_WORDS = (
    "what", "how", "who", "where", "when", "why", "which", "can", "could", "do", "does", "is", "are",
    "will", "may", "should", "am", "have", "if",
)  # fmt: skip
SYSTEM_PROMPTS = (
    "You are [a helpful|a friendly|a kind|a small|a very small|] [assistant|chat assistant|chatbot].",
    "You are tiny-chat, [a very small language model|a helpful assistant|the model of chitu_like].",
    "You are [a helpful|an] assistant. [Answer in short sentences|Be polite|Be brief|Be concise].",
    "[Be helpful and friendly|Answer the user|Chat with the user|Help the user].",
    "[You help people who use chitu_like|You are the assistant of chitu_like].",
)
MORE_PROMPTS = (
    "tell me more", "more", "go on", "can you tell me more", "more about that", "what else",
    "and then", "please go on", "can you say more", "tell me more about it", "anything else",
    "i want to know more",
)  # fmt: skip


def typed(prompt: str, rng: random.Random, typos: float = 0.08) -> str:
    """Write a prompt the way somebody types it: case, punctuation, contractions, typos."""
    for start, others in REPHRASINGS.items():
        if prompt.startswith(start) and rng.random() < 0.25:
            prompt = rng.choice(others) + prompt.removeprefix(start)
            break
    for full, short in CONTRACTIONS:
        if full in prompt and rng.random() < 0.25:
            prompt = prompt.replace(full, short)
    if len(prompt) < 90 and rng.random() < 0.12:
        prompt = rng.choice(OPENERS) + prompt
    if rng.random() < 0.06:
        prompt += ", please" if "please" not in prompt else ""
    if rng.random() < typos:
        prompt = with_typo(prompt, rng)
    is_question = prompt.lower().startswith(QUESTION_WORDS)
    style = rng.random()
    if style < 0.55:
        prompt = " ".join("I" if word == "i" else word for word in prompt.split(" "))
        prompt = prompt[:1].upper() + prompt[1:]
    elif style < 0.75:
        prompt = prompt.lower()
    if prompt[-1:].isalnum() and (style < 0.5 or rng.random() < 0.3):
        prompt += "?" if is_question else rng.choice((".", ".", "!", ""))
    return prompt


def loosened(prompt: str, rng: random.Random) -> str:
    """Say more than needed, or leave a small word out: the meaning stays."""
    words = prompt.split(" ")
    kind = rng.random()
    if kind < 0.3 and len(words) > 2:
        at = rng.randrange(1, len(words))
        return " ".join([*words[:at], rng.choice(FILLERS), *words[at:]])
    small = [
        i for i, word in enumerate(words) if word in ("the", "a", "an", "of", "is", "do", "to")
    ]
    if kind < 0.5 and small and len(words) > 3:
        del words[rng.choice(small)]
        return " ".join(words)
    return rng.choice(LEADS) + prompt if kind < 0.75 else prompt + rng.choice(TAILS)


def with_typo(text: str, rng: random.Random) -> str:
    """Swap, drop or double one letter of one plain word of five letters or more."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    i = rng.choice(long)
    word, at = words[i], rng.randrange(1, len(words[i]) - 1)
    wrong = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    )
    words[i] = rng.choice(wrong)
    return " ".join(words)


def system_prompt(rng: random.Random) -> str:
    """Draw a system prompt; all of them mean the same to tiny-chat."""
    return grammar.choose(rng.choice(SYSTEM_PROMPTS), rng)


@dataclass(kw_only=True)
class DialogueMaker:
    """Makes units (short dialogues that stand for themselves), for training or held out.

    Held-out units use phrasings, and TinyStories, that no training unit uses.
    """

    corpus: Path
    rng: random.Random
    held_out: bool = False
    words: stories.Words = field(default_factory=grammar.read_words)

    def __post_init__(self) -> None:
        project = questions.project_topics()
        smalltalk, facts = questions.smalltalk_topics(), questions.fact_topics()
        unknown = questions.unknown_topics(self.corpus, project + smalltalk + facts)
        self.topics: dict[str, list[tuple[questions.Topic, list[str]]]] = {}
        for topic in project + smalltalk + facts + unknown:
            prompts = [p for p in topic.prompts if self._is_mine(p, len(topic.prompts))]
            if prompts:
                self.topics.setdefault(topic.group, []).append((topic, prompts))
        tales = stories.read_tiny_stories(self.corpus)
        self.tales = [tale for tale in tales if is_held_out(tale[:80]) == self.held_out]
        self.short_tales = [
            stories.as_story(tale, self.words)
            for tale in self.tales
            if len(tale.split()) <= stories.MAX_ANSWER_WORDS
        ]
        story_lines = grammar.read_lines("story_requests.txt")
        requests = [p for line in story_lines for p in grammar.expansions(line)]
        self.requests = [p for p in requests if self._is_mine(p, len(requests))]

    def unit(self) -> list[Turn]:
        """Make one unit; the weights below are the recipe of the mixture."""
        makers: list[tuple[int, Callable[[], list[Turn]]]] = [
            (20, lambda: self._ask("concept")),
            (17, lambda: self._ask("howto")),
            (21, lambda: self._ask("smalltalk")),
            (9, lambda: self._ask("fact")),
            (4, lambda: self._ask("unknown")),
            (1, lambda: self._ask("hard")),
            (15, self._sum),
            (0 if self.held_out else 9, self._story),  # held-out stories are measured as text
            (10, self._memory),
            (4, self._echo),
        ]
        weights, choices = zip(*makers, strict=True)
        maker: Callable[[], list[Turn]] = self.rng.choices(choices, weights)[0]
        return maker()

    def stranger(self) -> list[Turn]:
        """Ask for a name that was never told; makes sense only as the first unit of a chat."""
        ask = (
            "[what is my name|who am i|do you know my name|what's my name|do you remember my name]"
        )
        return [self._turn(ask, "I do not know your name yet. What is your name?")]

    def plain_text(self) -> str:
        """Draw a story as plain text: mostly a TinyStory with other names."""
        if self.rng.random() < 0.3:
            return stories.write_story(self.rng, self.words).text
        tale = self.rng.choice(self.tales)
        return stories.rename(tale, self.rng, self.words) if self.rng.random() < 0.7 else tale

    def _is_mine(self, prompt: str, num_prompts: int) -> bool:
        return (num_prompts >= 8 and is_held_out(prompt)) == self.held_out

    def _ask(self, group: str) -> list[Turn]:
        topic, prompts = self.rng.choice(self.topics[group])
        prompt = self.rng.choice(prompts)
        if self.rng.random() < 0.3 and len(prompt) > 8:
            prompt = loosened(prompt, self.rng)
        turns = [(typed(prompt, self.rng), topic.answer(self.rng))]
        if topic.more and self.rng.random() < 0.4:
            turns.append((typed(self.rng.choice(MORE_PROMPTS), self.rng), topic.more[0]))
        return turns

    def _sum(self) -> list[Turn]:
        people = self.words["boy"] + self.words["girl"]
        drawn = [sums.make_sum(self.rng, people) for _ in range(self.rng.choice((1, 1, 2)))]
        return [(typed(question, self.rng), answer) for question, answer in drawn]

    def _story(self) -> list[Turn]:
        turns, story = [self._story_turn()], self.last_story
        follow_up = self.rng.random()
        if follow_up < 0.12:
            turns.append(self._story_turn())
        elif follow_up < 0.27 and story.about:
            pattern = "[who was|what was|who is] [the story|it|that] about"
            ask = grammar.choose(pattern, self.rng)
            about = grammar.with_articles(f"It was about {story.about}.")
            turns.append((typed(ask, self.rng), about))
        elif follow_up < 0.4:
            praise = "[what a|that was a|this is a|] [nice|good|great|lovely|funny] story"
            answer = "I am glad that you liked it! Would you like to hear another one?"
            turns.append((typed(grammar.choose(praise, self.rng), self.rng), answer))
            if self.rng.random() < 0.5:
                answer = self._story_turn()[1]
                yes = grammar.choose("[yes|yes please|sure|please|ok]", self.rng)
                turns.append((typed(yes, self.rng), answer))
        return turns

    def _story_turn(self) -> Turn:
        request = self.rng.choice(self.requests)
        # TinyStories mostly answer requests without a topic: few of them keep to one.
        if self.rng.random() < (0.06 if "{x}" in request else 0.25):
            story = self.rng.choice(self.short_tales)
            text = stories.rename(story.text, self.rng, self.words)
        else:
            story = stories.write_story(self.rng, self.words)
            text = story.text
        self.last_story = story
        if story.topics:
            if "{x}" not in request and self.rng.random() < 0.7:
                request = self.rng.choice([r for r in self.requests if "{x}" in r])
            topic = grammar.with_articles(self.rng.choice(story.topics))
            request = request.replace("{x}", topic)
        elif "{x}" in request:
            request = self.rng.choice([r for r in self.requests if "{x}" not in r])
        return typed(request, self.rng, typos=0.0), text

    def _memory(self) -> list[Turn]:
        """Tell something about oneself, talk about other things, and ask for it."""
        told = [self.rng.choice((self._name, self._name, self._favorite, self._home, self._age))()]
        if self.rng.random() < 0.3:
            told.append(self._name())
        turns = [tell for tell, _ in told]
        for _ in range(self.rng.choice((0, 0, 0, 1, 1, 2, 3, 5))):
            between = self.rng.choice(("smalltalk", "howto", "concept", "fact", "story"))
            turns += [self._story_turn()] if between == "story" else self._ask(between)
        return turns + [told[0][1]] + ([told[-1][1]] if self.rng.random() < 0.2 else [])

    def _new_name(self) -> str:
        return names.draw_name(self.rng, self.words, self.rng.choice(("boy", "girl")), 0.5)

    def _name(self) -> tuple[Turn, Turn]:
        name = self._new_name()
        tell = "[my name is|i am|i'm|hi, i am|hello, i am|hello, my name is|call me|please call me"
        tell += "|hi, my name is|hey, my name is|people call me|you can call me] "
        tell += name if self.rng.random() < 0.8 else name.lower()
        city = self.rng.choice(self.words["city"])
        if self.rng.random() < 0.12:
            tell += self.rng.choice((" and i live in ", ", i am from ")) + city
            if self.rng.random() < 0.5:
                where = self._turn("[where do i live|where am i from]", f"You told me {city}.")
                return self._turn(tell, f"Nice to meet you, {name}! How can I help you?"), where
        elif self.rng.random() < 0.12:
            tell += self.rng.choice((". how are you", ". what is your name", " and i am new here"))
        greet = self.rng.choice(("Nice to meet you, {}!", "Nice to meet you, {}!", "Hello, {}!"))
        ask = "[what is my name|who am i|do you remember my name|do you know my name|what's my name"
        ask += (
            "|tell me my name|what am i called|can you tell me my name|say my name|my name is what]"
        )
        answer = greet.format(name)
        if greet.startswith("Nice"):
            answer += " How can I help you?"
        return self._turn(tell, answer), self._turn(ask, f"Your name is {name}.")

    def _favorite(self) -> tuple[Turn, Turn]:
        kind = self.rng.choice(("color", "animal", "favfood"))
        thing, noun = self.rng.choice(self.words[kind]), kind.removeprefix("fav")
        tell = f"[my favo[u|]rite {noun} is {thing}|i like {thing} best|i love {thing} most]"
        ask = f"[what is my favo[u|]rite {noun}|which {noun} do i like|do you know my favo[u|]rite {noun}]"
        answer = f"{thing.capitalize()} is a good choice! I will remember that."
        return self._turn(tell, answer), self._turn(ask, f"Your favorite {noun} is {thing}.")

    def _home(self) -> tuple[Turn, Turn]:
        city, job = self.rng.choice(self.words["city"]), self.rng.choice(self.words["job"])
        if self.rng.random() < 0.4:
            ask = self._turn("[what is my job|what do i do|what am i]", f"You are {job}.")
            return self._turn(f"[i am|i'm|i work as] {job}", f"How nice that you are {job}!"), ask
        tell = self._turn(f"i [live in|am from|come from] {city}", f"{city} is a fine place to be!")
        return tell, self._turn("[where do i live|where am i from]", f"You told me {city}.")

    def _age(self) -> tuple[Turn, Turn]:
        age = self.rng.randint(4, 90)
        tell = self._turn(f"[i am|i'm] {age} [years old|]", f"{age} is a good age to be!")
        return tell, self._turn("[how old am i|what is my age]", f"You are {age} years old.")

    def _turn(self, pattern: str, answer: str) -> Turn:
        # No typos: they would change what has to be remembered.
        return typed(grammar.choose(pattern, self.rng), self.rng, typos=0.0), answer

    def _echo(self) -> list[Turn]:
        """Say after the user, or spell: it teaches copying."""
        pool = self.words["animal"] + self.words["thing"] + self.words["color"]
        if self.rng.random() < 0.25:
            word = self.rng.choice([w for w in pool if " " not in w])
            ask = grammar.choose("[spell|how do you spell|can you spell] ", self.rng) + " " + word
            return [(typed(ask, self.rng), "-".join(word) + ".")]
        pool += [names.made_up_word(self.rng, self.words) for _ in range(150)]
        phrase = " ".join(self.rng.sample([*pool, *self.words["adj"]], self.rng.randint(1, 4)))
        ask = grammar.choose("[say|repeat|repeat after me:|please say|can you say]", self.rng)
        return [(f"{ask} {phrase}", phrase)]


def is_held_out(text: str) -> bool:
    """Tell whether a text belongs to the held-out thirtieth; the same on every machine."""
    return zlib.crc32(text.encode()) % 30 == 0
