"""The study's stages: index → train → audit → evaluate → report. The only code that imports Ray."""

import os

# Before Ray is imported: a call when there is none would start one by itself, open to everybody on this machine.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

# Ray says of each task of an actor that dies that it will be retried, also when a run is stopped by Ctrl-C.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "the task will be retried")
