"""`gramfuse-server verify`: is everything there that the database names? For after a restore."""
