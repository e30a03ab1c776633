"""What a run leaves in a root: the layout, marks of stages, fingerprints of inputs, a lock, ledgers of shards."""
