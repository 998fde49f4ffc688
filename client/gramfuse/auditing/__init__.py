"""The report of an audit: what it holds, how it is judged, kept, and told."""
