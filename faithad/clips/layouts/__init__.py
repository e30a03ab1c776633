"""Data layouts: how the files of a data set lie in folders, and what their places and names say about them.

To add a layout, write a module that ends with a `Layout`, and list it in `LAYOUTS`. A configuration is checked against
this table, so a layout's module imports storage, numpy and torch inside its functions only.
"""

from __future__ import annotations

from faithad.clips.layouts.audio import AUDIO
from faithad.clips.layouts.dcase import DCASE
from faithad.clips.layouts.layout import DataFolders, Layout, LayoutFiles
from faithad.clips.layouts.planer import PLANER

__all__ = ["LAYOUTS", "DataFolders", "Layout", "LayoutFiles"]

LAYOUTS: dict[str, Layout] = {"audio": AUDIO, "planer": PLANER, "dcase": DCASE}
