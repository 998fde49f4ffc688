"""The wire contract: standard library and pydantic only, so that the light client and the API need no torch."""
