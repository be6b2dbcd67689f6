"""``TokenizedGroup`` -> packed rows, in the order in which a group meets the files.

``plan`` says which groups meet in which step and pack, ``pack`` lays them end to end, ``step_layout`` says where each
token of a step lies, ``loader`` keeps steps ready, and ``steps`` is where a loop reads them.
"""
