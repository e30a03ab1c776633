"""An audit of recordings with a trained model as one Ray job.

    ray job submit --working-dir . -- python jobs/audit.py --config configs/audit.yaml
    faithad submit audit --config configs/audit.yaml          # the same, with checks first

Takes the options of `faithad audit`. Relative paths start at FAITHAD_HOME, by default ~/faithad on the head node.
"""

from faithad.cli import job

job("audit")
