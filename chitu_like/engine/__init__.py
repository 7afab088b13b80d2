"""One instance, step by step: the engine loop, its executor protocol and its messages."""
