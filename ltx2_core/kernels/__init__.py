"""Fused kernels of the engine. Each has an eager version of equal results, which runs wherever Triton does not."""
