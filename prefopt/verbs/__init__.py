"""What the commands do, a file or a folder each; their arguments are in ``cli``."""
