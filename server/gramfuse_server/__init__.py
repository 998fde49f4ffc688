"""The merge server: an API that never needs torch, and workers that do the arithmetic."""
