"""Measurements against other libraries and ourselves; run one as ``python -m benchmarks.bench_step``.

The doors are bench_step, bench_linear_logp and bench_attention; behind each is a folder: step, logp, attention.
shared is what they have in common. gpu.sh runs all of them and, by gpu.tests, the tests that need a GPU. Results
go to results, what was found to LOG.md. Nothing here is imported by the package, and everything imports where
only torch, transformers and accelerate are installed; peers are imported where they are measured.
"""
