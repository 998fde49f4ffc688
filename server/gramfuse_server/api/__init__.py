"""Thin routes, one module per noun: parse, call, answer."""
