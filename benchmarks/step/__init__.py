"""Behind ``bench_step``: two benchmarks of whole optimizer steps, and what both give their contenders.

flops: the operations of a step, counted for every layout. models: models of known sizes with random weights.
workloads: random ids of given lengths. rows: real transcripts or words like them. task: what every contender is
given alike. contender: what it must offer. usual_way: padded rows and all logits. prefopt_contender and
trl_contender: the two sides.

in_turns trains one small model on a CPU, everybody in turns. full_size trains models of known sizes on a GPU.
"""
