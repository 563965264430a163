"""Reads tensors of a safetensors file straight into memory that is given."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..errors import is_out_of_memory
from .checkpoint import SafetensorsFile
from .header import TensorInfo

# Reads of several threads keep a fast disk, and the copy out of the page cache, busy
_THREADS = 4
_CHUNK = 64 * 2**20
_TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


def read_into(file: SafetensorsFile, targets: Mapping[str, Tensor]) -> None:
    """Fills ``targets`` with the file's tensors of these names; fp8 numbers come without their scales.

    Contiguous host memory of the stored dtype is read into without any copy in between; other targets (another dtype,
    the device) get theirs through one tensor at a time.

    Raises:
        CheckpointError: the file changed or cannot be read.
    """
    through: list[str] = []
    jobs = []
    base = file.stamp[0] - file.nbytes
    for name, target in targets.items():
        info = file.tensors[name]
        if not _is_direct(info, target):
            through.append(name)
        else:
            memory = memoryview(target.view(torch.uint8).flatten().numpy())  # type: ignore[arg-type]
            jobs += [(base + info.offset + at, memory[at : at + _CHUNK]) for at in range(0, info.nbytes, _CHUNK)]
    file.check_unchanged()
    for name, tensor in file.each(through):
        targets[name].copy_(tensor)
    if not jobs:
        return
    jobs.sort(key=lambda job: job[0])
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda share: _read_share(file, share), [jobs[i::_THREADS] for i in range(_THREADS)]):
            pass


def _is_direct(info: TensorInfo, target: Tensor) -> bool:
    return (
        target.device.type == "cpu"
        and target.is_contiguous()
        and target.dtype is _TORCH_DTYPES.get(info.dtype)
        and tuple(target.shape) == info.shape
        and target.ndim > 0
        and target.numel() > 0
    )


def _read_share(file: SafetensorsFile, jobs: list[tuple[int, memoryview]]) -> None:
    try:
        with file.path.open("rb", buffering=0) as stream:
            for offset, memory in jobs:
                stream.seek(offset)
                done = 0
                while done < len(memory):
                    got = stream.readinto(memory[done:])
                    if not got:
                        raise OSError("the file ends early")
                    done += got
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise file.error(f"cannot be read ({error})", "Download the file again.") from error
