"""The operators' page: server-rendered, refreshed by htmx, nothing loaded from elsewhere."""
