"""Scores models on an organization's own labelled texts. Nothing here opens a connection."""
