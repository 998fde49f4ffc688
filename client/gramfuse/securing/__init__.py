"""An organization's side of a secure session: what it answers at each stage, what it refuses, and what it keeps."""
