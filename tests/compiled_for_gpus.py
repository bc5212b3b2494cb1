"""Compile the Triton kernels for GPUs that need not be there, as their classes would launch them.

    python compiled_for_gpus.py

Prints one line a kernel that compiled. Triton's interpreter, which runs the kernels in other tests,
allows much that its compiler refuses.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from coincide.losses.triton_rows import LogCollisionInTriton

TARGETS = (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32))
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    int: "i32",
    float: "fp32",
}
done: set[Any] = set()


def compile_instead(
    self: Any, *args: Any, grid: Any, warmup: bool, num_warps: int = 4, **kwargs: Any
) -> None:
    """Compile for every target what this launch would run; nothing runs."""
    given = dict(zip(self.arg_names, args, strict=False)) | kwargs
    constants = {p.name: given[p.name] for p in self.params if p.is_constexpr}
    signature = {
        name: "constexpr"
        if name in constants
        else TYPES[value.dtype if isinstance(value, Tensor) else type(value)]
        for name, value in given.items()
    }
    case = (self.__name__, *signature.items(), *constants.items())
    if case in done:
        return
    done.add(case)
    for target in TARGETS:
        source = ASTSource(self, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
        assert compiled.asm["cubin"]
    print(self.__name__, flush=True)


JITFunction.run = compile_instead
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    logits = torch.zeros(3, 5000, dtype=dtype, requires_grad=True)
    computed = torch.promote_types(dtype, torch.float32)
    value = LogCollisionInTriton.apply(logits, logits.detach(), computed)
    value.sum().backward()
