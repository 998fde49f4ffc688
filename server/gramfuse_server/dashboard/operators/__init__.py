"""What operators are shown: the whole server, without what is its organizations' own."""
