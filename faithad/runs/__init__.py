"""What a run leaves in a root: where each table is, marks of stages, fingerprints of inputs, a lock."""
