"""Which instance answers a request, and whether it is let in at all. Runs in the front end."""
