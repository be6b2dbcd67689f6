"""What ``gpu.sh`` runs beside the benchmarks: tests, the tests that need a GPU, ended without losing what failed."""
