"""Move documents and bytes between this machine and the server; everything resumes."""
