"""Numeric primitives: the torch reference of each, and the registered twins that are faster."""
