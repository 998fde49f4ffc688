"""Looks for the merge that everybody's evaluations find best: over parameters, weights and cohorts."""
