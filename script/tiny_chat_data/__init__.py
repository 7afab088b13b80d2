"""What tiny-chat learns: hand-written text files, and the code that expands them into dialogues."""
