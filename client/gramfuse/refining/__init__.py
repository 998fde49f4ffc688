"""Merges a model anew, block by block, with what everybody measures in it: RegMean++ as one call."""
