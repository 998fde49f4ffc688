"""Does an upload match its manifest? From the first byte to accepted or rejected."""
