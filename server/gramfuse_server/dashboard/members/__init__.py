"""What an organization is shown: what its tokens may see by the API, by the same queries and rules."""
