"""Triton's kernels. Only the modules beside this folder, which state what each one computes, may import them."""
