"""MAPS → NUMBERS: detection, peaks and their F-score, faithfulness, their controls, and the summaries."""
