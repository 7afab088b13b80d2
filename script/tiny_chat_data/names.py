"""Names of people: common ones, and made-up ones that can only be copied, not learned by heart."""

import random

Words = dict[str, list[str]]


def draw_name(rng: random.Random, words: Words, gender: str, share_made_up: float) -> str:
    """Draw a boy's or girl's common name, or make one up with the given probability."""
    if rng.random() >= share_made_up:
        return rng.choice(words[gender])
    return made_up_word(rng, words).capitalize()


def made_up_word(rng: random.Random, words: Words) -> str:
    """Make up a word of one to three syllables."""
    num_syllables = rng.choice((1, 2, 2, 2, 3))
    syllables = (
        rng.choice(words["starts"]) + rng.choice(words["vowels"]) for _ in range(num_syllables)
    )
    return "".join(syllables) + rng.choice(["", "", *words["ends"]])
