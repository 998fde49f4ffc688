"""What Prometheus is told: requests by the API, work by each worker, and the state that the database holds.

Labels are route templates, states and error codes, all of them known beforehand: never a name, an id or a digest.
"""
