"""Behind ``bench_attention``.

packs: pairs laid out in one row, the same with repeated prompts, and the float64 truth. measure: one problem,
everybody checked and timed. report: its table.
"""
