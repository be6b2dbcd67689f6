"""``TokenizedGroup`` -> packed rows, in the order in which a group meets the files.

``plan`` says which groups meet in which step and pack, ``pack`` lays them end to end, ``loader`` keeps steps ready.
"""
