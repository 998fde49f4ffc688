"""Decide what of a model may leave, and lay out the files that do. No torch, no network."""
