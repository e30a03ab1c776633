"""The search over mask ratio and patch size as one Ray job.

    ray job submit --working-dir . -- python jobs/search.py --config configs/search.yaml

Takes the options of `faithad search`. Relative paths start at FAITHAD_HOME, by default ~/faithad on the head node.
"""

from faithad.cli import job

job("search")
