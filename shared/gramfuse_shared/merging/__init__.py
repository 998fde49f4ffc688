"""The one merge engine: plan, then stream tensors, solve and write shards."""
