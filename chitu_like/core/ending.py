"""How a process of this package ends: its exit code, and how long it lets another one speak."""

DONE, FAILED, USER_MISTAKE, INTERRUPTED = 0, 1, 2, 130
LAST_WORDS_S = 5.0
"""torchrun ends all ranks as soon as one ends. Rank 0, or an instance's leader, is the one to say why,
and has a front end to end before; so the others wait for it."""
