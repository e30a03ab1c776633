"""The whole study as one Ray job.

    ray job submit --working-dir . -- python jobs/full_study.py --config configs/demo.yaml
    faithad submit full_study --config configs/demo.yaml          # the same, with checks first

Takes the options of `faithad study`. Relative paths start at FAITHAD_HOME, by default ~/faithad on the head node.
"""

from faithad.cli import job

job("study")
