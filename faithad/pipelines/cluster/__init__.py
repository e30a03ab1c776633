"""What the pipelines run on: a Ray, its machines, and the storage that all of them see."""
