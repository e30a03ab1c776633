"""Recordings and a model → scores, explanations, events and what other tools read of them."""
