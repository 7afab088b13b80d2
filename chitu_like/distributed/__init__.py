"""Ranks: which part of the model this process holds, and how it talks to the others."""
