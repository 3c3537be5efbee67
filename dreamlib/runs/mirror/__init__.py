"""The second copy of a run: written behind it, and restored from."""
