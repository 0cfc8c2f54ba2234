"""What cannot be measured through hooks, each refused in one line."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from flowlab.errors import InputError

_SHARDED = ("FullyShardedDataParallel", "FSDPModule")
_SHARDS = ("FlatParameter", "DTensor")


def check(model: Any) -> None:
    """Raise InputError for what is no module, and for one whose hooks would not see its tensors."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for path, module in model.named_modules():
        at = f"model.{path}" if path else "model"
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise InputError(
                f"{at} must not be compiled: hooks do not fire inside torch.compile; attach the "
                "original module, which has the same parameters, and compile after detach"
            )
        if isinstance(module, nn.DataParallel):
            raise InputError(
                f"{at} must not be DataParallel: its replicas are made anew in every pass; "
                "attach model.module, on one device"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{at} must not be TorchScript, which runs without hooks; "
                "attach the original module"
            )
        if named := _kin(module, _SHARDED):
            raise InputError(
                f"{at} must not be sharded: {named} replaces parameters by flat shards; "
                "attach the module before it is wrapped"
            )
    for path, parameter in model.named_parameters():
        if named := _kin(parameter, _SHARDS):
            raise InputError(
                f"parameter {path} must be whole; got a {named}: attach before sharding"
            )
        if isinstance(parameter, UninitializedParameter):
            raise InputError(
                f"parameter {path} must have a shape; got a lazy one: run one forward pass first"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model must have a parameter that requires a gradient; got none")


# Older versions do not say whether a call was begun by compiled code, only whether it is traced.
_compiling = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", torch.compiler.is_compiling
)


def check_call() -> None:
    """Raise InputError where a module is called in a way that hides its tensors from hooks."""
    if _compiling() not in (None, False):
        raise InputError(
            "model must not be called from compiled code while it is attached: hooks do not fire "
            "inside torch.compile; call the original module, and compile after detach"
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise InputError(
            "model must not be called under torch.func while it is attached: its transforms have "
            "no graph of the backward pass; call backward()"
        )


def _kin(value: object, names: tuple[str, ...]) -> str:
    """The first of ``names`` among a value's classes, "" if there is none."""
    return next((name for name in _classes(value) if name in names), "")


def _classes(value: object) -> Iterator[str]:
    return (kind.__name__ for kind in type(value).__mro__)
