"""From raw rows to packed batches, one arrow after the other.

1. ``rows``: a row of any known layout -> ``Comparison``, a prompt, its answers and what is preferred.
2. ``tokens``: ``Comparison`` -> ``TokenizedGroup`` -> ``GroupTable``, the columns that a run trains from.
3. ``packs``: which groups meet in a step, their packed rows, built ahead of the loop.

``prepare`` walks 1 and 2 for all sources of a recipe and reports what became of every row.
"""
