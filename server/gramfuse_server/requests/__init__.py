"""Requests: what participants of a cohort are asked, their answers, and when enough of them are there."""
