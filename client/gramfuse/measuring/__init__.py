"""Measure what a model's linear layers read: hooks, statistics and their file, texts, resumable runs. Needs torch."""
