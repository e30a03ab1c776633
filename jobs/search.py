"""The search over mask ratio and patch size as one Ray job.

    ray job submit --working-dir . -- python jobs/search.py --config configs/search.yaml
    faithad submit search --config configs/search.yaml          # the same, with checks first

Takes the options of `faithad search`. Relative paths start at FAITHAD_HOME, by default ~/faithad on the head node.
"""

from faithad.cli import job

job("search")
