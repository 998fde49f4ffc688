"""PEFT adapters of low rank: read as the models that they make of a base, and written from merged ones."""
