"""The study's stages: index → train → audit → evaluate → report. The only code that imports Ray."""
