"""What the benchmarks share, from the ground up.

environment: where a measurement was made, and which peers are installed. meters: time and memory of one call.
results: the JSON, the tables. plots: matplotlib, where it is there. ops: all that benchmarks of a single op do
alike, from the options to the turns.
"""
