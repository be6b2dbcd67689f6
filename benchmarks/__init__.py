"""Measurements against other libraries and ourselves; run one as ``python -m benchmarks.bench_step``."""
