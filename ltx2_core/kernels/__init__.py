"""Kernels of the engine: a file per contract.

A contract is a function that says what is computed and holds its eager form, which runs everywhere. Where
:func:`.availability.fused` says so, it calls a kernel of the file of the same name in ``triton/``, which computes the
same but for rounding. Callers see contracts alone. Value types that both sides take are in files of their own.
"""
