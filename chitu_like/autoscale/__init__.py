"""More or fewer instances: load signals, how many of which role, who sends the weights to whom."""
