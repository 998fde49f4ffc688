"""What a merge tells of itself, in words for people. Imports the contract alone."""
