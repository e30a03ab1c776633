"""Acoustic anomaly detection on Ray, with explanations whose faithfulness is measured.

The data's way: recordings → clips → features → model → attribution → evaluation → Parquet → report.
"""

__version__ = "0.1.0"
