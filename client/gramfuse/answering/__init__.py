"""Answers the server's requests from local data: what is computed, what of it may leave, what waits to be sent."""
