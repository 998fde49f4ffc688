"""An organization's own task head on a merged trunk. Local files only: no torch, no network."""
