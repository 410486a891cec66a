"""The life of a run: its data, its checkpoints, what it reports, and where it starts from."""
