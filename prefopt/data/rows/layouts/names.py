"""The names of layouts, for whoever checks one without reading rows; nothing is loaded here."""

from __future__ import annotations

LAYOUT_NAMES = ("messages", "sharegpt", "transcript", "text", "labelled", "ranked")
"""What a recipe can call the layout of its rows, as ``table.LAYOUTS`` has it."""
