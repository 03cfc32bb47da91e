"""Times cnnfast's kernels beside what its user would have had; the contract is benchmarks/README.md."""
