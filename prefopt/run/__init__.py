"""The output folder of a run: what lies in it, and how it is resumed."""
