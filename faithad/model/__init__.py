"""The reconstruction models: log-mel spectrograms in, reconstructions of the same shape out."""
