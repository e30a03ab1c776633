"""A job for a cluster: checked here, checked there, followed to its end."""
