"""Before serving: where which layers go, and how many instances of which kind are enough."""
