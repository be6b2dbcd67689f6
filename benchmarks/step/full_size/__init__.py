"""Optimizer steps of models at full size: each contender at its best batch size, within a time for all.

stages: what is measured, in which order. truth: loss and gradient that everybody is held to. worker: the process
that the work is done in. ceilings: what the device can do. measure: one contender at one batch size. memory: what
the planner foresees. batch_size: the search for the fastest that fits. session: all stages, one contender at a
time. report and plot: what is made of it. command: from the options to the exit code.
"""
