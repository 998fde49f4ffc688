"""Secure aggregation: sums of numbers of which nobody sees a single summand. Arithmetic and cryptography, no I/O.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017.
"""
