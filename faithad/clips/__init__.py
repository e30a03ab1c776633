"""Recordings to clips: decoding, windows, expert annotations, the manifest, and the demo mill."""
