"""The study's stages: index → train → audit → evaluate → report. The only code that imports Ray."""

import os

# Before Ray is imported: a call when there is none would start one by itself, open to everybody on this machine.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

# Ray would say of each actor that a run ends, when it is stopped by Ctrl-C, that its task failed and will be retried.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "killed by `ray.kill`")
