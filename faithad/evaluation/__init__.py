"""MAPS → NUMBERS: detection, peaks and their F-score, faithfulness, the controls beside them, and the summaries."""
