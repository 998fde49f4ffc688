"""Pages for browsers: server-rendered, refreshed by htmx, nothing loaded from elsewhere.

`operators` and `members` hold what each of them is shown; what serves both lies beside.
"""
