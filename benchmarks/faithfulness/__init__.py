"""The parts of `benchmarks/explain.py`: what is measured (metrics), on what (data), whose maps (served,
baselines, rise), and what clusters do (clusters)."""
