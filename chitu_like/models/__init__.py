"""Model families: one common skeleton, and a file a family for what differs."""
