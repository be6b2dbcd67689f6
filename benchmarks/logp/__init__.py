"""Behind ``bench_linear_logp``.

problem: the inputs, what is asked for, and the float64 truth. providers: who takes part. measure: one problem,
everybody checked and timed. report: its table. plot: all problems in one picture.
"""
