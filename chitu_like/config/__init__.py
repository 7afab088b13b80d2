"""The types of the values: what may be configured, how it is read, and what `auto` becomes."""
