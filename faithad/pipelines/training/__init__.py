"""Features → models: Ray Train, as many trainings side by side as the cluster carries."""
