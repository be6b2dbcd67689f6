"""The layouts of rows, one file each, and what they are made of.

``columns`` finds columns by their names, ``forms`` says what an answer is, ``layout`` what there is to know of a
layout; ``fields`` takes a row's cells, ``texts`` its prompts and answers (``question`` where only a rationale is
given), ``better`` what a cell says of two answers. ``names`` and ``table`` list the layouts, which are the other files,
``detect`` decides which one the first rows of a source have, and ``refusals`` says what is lacking where none fits.
"""
