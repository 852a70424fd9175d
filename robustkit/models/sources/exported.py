"""Networks saved with their own code: TorchScript, `torch.export` (.pt2) and ONNX. They need no arch=.

What reading them can do: a TorchScript archive holds operators of torch, no Python; ONNX holds a list of operators; but
reading a .pt2 unpickles, and evaluates the text of its sizes, so that it can run any code and needs `--trust`.
"""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError, first_line
from robustkit.models.sources.trust import trusted

Format = Literal["TorchScript", "torch.export", "ONNX"]
OPSET = 17  # the newest that the converter knows; one more is read as this one


class Program(NamedTuple):
    """A network, and the shape (channels, height, width) of the images it was exported for, as far as it is told."""

    module: nn.Module
    input_shape: tuple[int, ...] = ()


def format_of(file: Path) -> Format | None:
    """Which of the formats a file is of; None for one that holds weights alone, or is none of ours."""
    if file.suffix in (".onnx", ".pt2"):
        return "ONNX" if file.suffix == ".onnx" else "torch.export"
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "archive_format" in names:
        return "torch.export"
    return "TorchScript" if any(name.startswith("code/") for name in names) else None


def read(file: Path) -> Program:
    """The network of a file in one of the formats, in eval mode.

    Raises:
        UsageError: if it cannot be read, is not trusted where reading can run code, or takes batches of one size only.
    """
    readers = {"TorchScript": _torchscript, "torch.export": _exported, "ONNX": _onnx}
    kind = format_of(file)
    if kind is None:
        raise UsageError(f"{file} is no TorchScript, torch.export or ONNX file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls formats deprecated that are in use
            return readers[kind](file)
    except UsageError:
        raise
    except Exception as error:  # a broken file can make a reader raise anything
        line = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"{file} does not load as {kind}: {line}") from error


class Exported(nn.Module):
    """The module of an exported program, which refuses eval() although it is fixed in the mode it was exported in."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.eval()

    def train(self, mode: bool = True) -> "Exported":
        """Note the mode, without asking the program."""
        for part in self.modules():
            part.training = mode
        return self

    def forward(self, x: Images) -> Logits:
        """The program's outputs."""
        logits: Tensor = self.program(x)
        return logits


def _torchscript(file: Path) -> Program:
    module: nn.Module = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
    return Program(module.eval())


def _exported(file: Path) -> Program:
    if not trusted():
        raise UsageError(
            f"{file} is a torch.export program, and reading one can run any code in it; if you trust its author, add "
            "--trust (trust=True in Python), or save it as ONNX or TorchScript"
        )
    program = torch.export.load(file)
    names = program.graph_signature.user_inputs
    shapes = [n.meta["val"].shape for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    if len(shapes) != 1:
        raise UsageError(f"{file} takes {len(shapes)} inputs; a classifier takes one batch of images")
    _check_batch(file, list(shapes[0]), "torch.export.export(model, (x,), {})")
    return Program(Exported(program.module()), _known(shapes[0][1:]))


def _onnx(file: Path) -> Program:
    program, batch = onnx_program(file)
    _check_batch(file, [batch], "torch.onnx.export(model, (x,), file, {}, dynamo=True)")
    return program


def onnx_program(file: Path) -> tuple[Program, int | None]:
    """The network in an ONNX file, and the one size of batches that it was exported for, None if it takes any.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        import onnx
        import onnx2torch
        from onnx import version_converter
    except ModuleNotFoundError as error:
        raise UsageError(
            f"an ONNX file needs {error.name!r}, which is not installed: pip install 'robustkit-bench[zoo]'"
        ) from error
    model = onnx.load(file)
    fixed = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in fixed]
    if len(inputs) != 1:
        raise UsageError(f"{file} takes {len(inputs)} inputs; a classifier takes one batch of images")
    shape = [dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim]
    batch = shape[0] if shape else None
    advice = f"; export it with opset_version={OPSET + 1}, or save it as TorchScript"
    try:
        if any(known.domain in ("", "ai.onnx") and known.version > OPSET for known in model.opset_import):
            model = version_converter.convert_version(model, OPSET)
        _settle_reshapes(model)
        return Program(onnx2torch.convert(model).eval(), _known(shape[1:])), batch
    except (NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{file} has an operator that cannot be converted: {first_line(error)}{advice}") from error


def _settle_reshapes(model: Any) -> None:
    """Say allowzero=0 in reshapes to constant shapes without a zero: it means the same there, and can be converted.

    One to (1, n), of a network for batches of one, is a Flatten: then it can be traced, and called on each of several.
    """
    from onnx import numpy_helper

    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        shape = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and len(shape) == 2 and shape[0] == 1:
            node.op_type = "Flatten"
            del node.input[1:], node.attribute[:]
        elif shape is not None and (shape != 0).all():
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                node.attribute.remove(attribute)


def _check_batch(file: Path, shape: Sequence[object], call: str) -> None:
    if shape and isinstance(shape[0], int):
        raise UsageError(
            f"{file} was exported for batches of exactly {shape[0]}, and is called with others; export it again with a "
            f"dynamic batch: {call.format('dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)')}"
        )


def _known(shape: Sequence[object]) -> tuple[int, ...]:
    """The sizes, if all are fixed."""
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else ()
