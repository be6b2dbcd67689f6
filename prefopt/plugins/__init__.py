"""What users bring by name: functions of installed packages, of modules and of files, each with a digest of its code.

A recipe names something of a ``Kind``: a loss, a transform. ``find`` knows three spellings:

    dpo                        of the kind's table; or of an installed package that adds the name by an entry point
    my_package.losses:my_loss  a function of a module that Python can import
    my_loss.py:my_loss         a function of a file, looked for from the recipe's folder

Looking a name up imports the code that it names, and nothing else does: no name is taken from a checkpoint or a run
folder, and listing what installed packages add imports none of it. From the ground up:

    code    whose code it is, and where it failed
    load    files and modules imported, every mistake in one line
    digest  which files stand behind a name, and their digest
    kinds   tables, entry points, and ``find``

Nothing here knows what a loss is. Whoever looks something up checks that it is of use.
"""

from prefopt.plugins.code import Code, blamed, line_of, place_in, said
from prefopt.plugins.kinds import Kind, Named, find, installed, is_own

__all__ = [
    "Code",
    "Kind",
    "Named",
    "blamed",
    "find",
    "installed",
    "is_own",
    "line_of",
    "place_in",
    "said",
]
