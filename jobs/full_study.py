"""The whole study as one Ray job.

    ray job submit --working-dir . -- python jobs/full_study.py --config configs/demo.yaml

Takes the options of `faithad study`. Relative paths start at FAITHAD_HOME, by default ~/faithad on the head node.
"""

from faithad.cli import job

job("study")
