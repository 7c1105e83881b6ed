"""One self-contained page for a run: what it measured, in words, pictures and tables."""
