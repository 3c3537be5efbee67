"""A T4 that is not there: tensors that say cuda:0 and compute on this machine.

What a GPU refuses is refused: an operation on tensors of both places (numbers without dimensions,
indices and copies excepted), numpy of what lies there.  Values are real, so that whole programs
run; gradients are zeros, as autograd's engine needs a real device.  The driver answers for a T4:
compute capability 7.5, 15 GB, fp16 autocast, loss scaling.

PyTorch's own fake tensors, which work on a cuda:0 without a GPU as well, hold no values: they stop
at the first number that a program reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

T4 = torch.device("cuda:0")
CPU = torch.device("cpu")
MEMORY = 15 * 2**30
aten = torch.ops.aten
COPIES = (aten.copy_, aten._to_copy, aten.to, aten._local_scalar_dense)
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index)  # by indices on the CPU


class Far(torch.Tensor):
    """A tensor "on the GPU"; `held` is where its values are."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Far:
        far = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=T4,
        )
        far.held = held
        return far

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Far({self.held!r})"


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, where its tensors lie."""
    packet = func.overloadpacket
    named = [x for x in (*args, kwargs.get("device")) if isinstance(x, torch.device)]
    wanted = named[-1] if named else None
    seen: list[torch.Tensor] = []
    tree_map(lambda x: seen.append(x) if isinstance(x, torch.Tensor) else None, (args, kwargs))
    far = [x for x in seen if isinstance(x, Far)]
    near = [x for x in seen if not isinstance(x, Far) and x.dim()]
    if far and near and packet not in COPIES:
        indices = packet in INDEXED and not [x for x in near if x.is_floating_point()]
        if not (indices and isinstance(args[0], Far)):
            raise RuntimeError(f"tensors on both cuda:0 and cpu in {func}")
    whose = {id(x.held): x for x in far}
    plain = tree_map(lambda x: x.held if isinstance(x, Far) else x, (args, kwargs))
    plain = tree_map(lambda x: CPU if isinstance(x, torch.device) else x, plain)
    if plain[1].get("pin_memory"):
        plain[1]["pin_memory"] = False
    with unset_fake_temporarily():
        if packet is aten.cudnn_batch_norm:  # CUDA's own kernel
            done = (*aten.native_batch_norm(*plain[0]), torch.empty(0))
        else:
            done = func(*plain[0], **plain[1])
    there = wanted.type == "cuda" if wanted is not None else bool(far)
    if packet is aten.copy_:
        there = isinstance(args[0], Far)

    def back(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not there:
            return x
        return whose.get(id(x)) if id(x) in whose else Far(x)

    return tree_map(back, done)


class Placed(TorchDispatchMode):
    """Takes what is made with device="cuda:0" there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _apply(module: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module._apply` for tensors that cannot be swapped in place."""
    for child in module.children():
        child._apply(fn)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = fn(parameter)
            module._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


def _grad(outputs: Any, inputs: Any, *words: Any, **named: Any) -> tuple[torch.Tensor, ...]:
    one = isinstance(inputs, torch.Tensor)
    return tuple(torch.zeros_like(x) for x in ((inputs,) if one else inputs))


def _backward(loss: torch.Tensor, *words: Any, inputs: Any = (), **named: Any) -> None:
    assert isinstance(loss, Far), "the loss came back to the CPU"
    for x in inputs:
        x.grad = torch.zeros_like(x) if x.grad is None else x.grad


@contextmanager
def t4() -> Iterator[torch.device]:
    """Within, torch sees a T4."""
    numpy, tolist, load = torch.Tensor.numpy, torch.Tensor.tolist, torch.load

    def loaded(*words: Any, **named: Any) -> Any:
        with unset_fake_temporarily():
            return load(*words, **named)

    def refuse(x: torch.Tensor, *words: Any, **named: Any) -> Any:
        if isinstance(x, Far):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return numpy(x, *words, **named)

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda *where: (7, 5),
        "get_device_name": lambda *where: "Tesla T4",
        "get_arch_list": lambda: ["sm_75"],
        "mem_get_info": lambda *where: (MEMORY // 2, MEMORY),
        "synchronize": lambda *where: None,
        "empty_cache": lambda: None,
    }
    with ExitStack() as stack:
        # It keeps torch from asking for the driver, if it sees that there is none.
        stack.enter_context(FakeTensorMode())
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        for owner, name, stand_in in (
            (torch.nn.Module, "_apply", _apply),
            (torch.autograd, "grad", _grad),
            (torch.Tensor, "backward", _backward),
            (torch.Tensor, "numpy", refuse),
            (torch.Tensor, "tolist", lambda x: tolist(x.held if isinstance(x, Far) else x)),
            (torch, "load", loaded),
            (torch._C, "_InferenceMode", lambda on: torch.set_grad_enabled(not on)),
            (torch.Tensor, "pin_memory", lambda x, *words: x),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(Placed())
        yield T4
