"""Mask ratio x patch size: Ray Tune over trainings, judged without a test label."""
