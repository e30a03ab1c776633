"""Clips in shards: read ahead, streamed through Ray's processes, written under fixed names."""
