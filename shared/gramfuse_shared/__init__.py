"""What both parties must agree on: the wire contract, the mathematics of fusion, the merge engine."""
