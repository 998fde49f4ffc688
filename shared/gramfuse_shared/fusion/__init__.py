"""The mathematics of merging: weighted least squares over sums. Torch only; never I/O, clock, network or settings."""
