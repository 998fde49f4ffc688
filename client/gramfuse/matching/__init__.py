"""Which order of a model's hidden units fits another model best, and a copy of it in that order."""
