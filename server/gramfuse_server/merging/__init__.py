"""Jobs: from a recipe to a published model. The modules that touch tensors are imported by the worker alone."""
