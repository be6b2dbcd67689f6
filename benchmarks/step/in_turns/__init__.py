"""Optimizer steps of a small model, everybody in a process of its own, in turns.

contenders: who takes part. team: the processes and their turns. gate: losses held to TRL's. report: the record
and the table. command: from the options to the exit code.
"""
