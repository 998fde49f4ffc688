"""Privacy: what statistics reveal, said before they leave."""
