"""The command line: parse, call the SDK, print, exit with a documented code."""
