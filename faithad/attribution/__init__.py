"""Which cells of a spectrogram the reconstruction error comes from."""
