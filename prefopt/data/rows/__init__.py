"""From a row of any known layout to a ``Comparison``, in the order in which a row meets the files.

``source`` opens a file or hub data set (``files`` reads the text formats) and yields ``raw`` rows;
``layouts`` decides from the first of them which layout they have, ``needs`` whether that can serve the loss;
``cells`` takes a row's cells under their canonical names, ``values`` checks and converts each;
``shapes`` makes the ``Comparison`` of them (``question`` where only a rationale is given);
``mismatched`` adds answers to other prompts, ``parts`` splits a row of several prompts, ``choose`` keeps what the
loss learns from. ``report`` counts what became of the rows.
"""
