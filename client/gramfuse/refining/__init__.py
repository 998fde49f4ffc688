"""Merges a model anew, step by step, with what everybody measures in it: RegMean++, or layers refit in order."""
