"""The world of picture files: find pairs, decode, stack, cache, fetch, and files to files."""
