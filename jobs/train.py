"""Training as one Ray job: features, then every model and seed of a study.

    ray job submit --working-dir . -- python jobs/train.py --config configs/paper.yaml
    faithad submit train --config configs/paper.yaml          # the same, with checks first

Takes the options of `faithad train`. Relative paths start at FAITHAD_HOME, by default ~/faithad on the head node.
"""

from faithad.cli import job

job("train")
