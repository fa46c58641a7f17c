"""Models as folders: loading, the small policy that the project makes, shapes for benchmarks."""
