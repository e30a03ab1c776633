"""Training as one Ray job: features, then every model and seed of a study; or one model on normal recordings alone.

    ray job submit --working-dir . -- python jobs/train.py --config configs/paper.yaml
    ray job submit --working-dir . -- python jobs/train.py --normals s3://bucket/normal --to s3://bucket/models/mill
    faithad submit train --config configs/paper.yaml          # the same, with checks first

Takes the options of `faithad train`. Relative paths start at FAITHAD_HOME, by default ~/faithad on the head node.
"""

from faithad.cli import job

job("train")
