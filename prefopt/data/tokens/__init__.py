"""From a ``Comparison`` to token ids, in the order in which a row meets the files.

``render`` prints it with the chat template, ``tokenize`` tokenizes that (``control`` finds the control tokens that a
text spells out, ``turns`` which tokens of several turns count); ``truncate`` says where it is cut; ``group`` makes
the ``TokenizedGroup``; ``table`` keeps all groups as columns (``columns`` does the arithmetic of spans,
``embeddings`` those of the prompts), which ``arrays`` writes to disk and maps back.
"""
