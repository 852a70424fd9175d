"""The command `robustkit prove`. What is slow to import is imported where it is used."""

from pathlib import Path

import click

from robustkit.cli import options, output
from robustkit.cli.endings import end
from robustkit.errors import ExitCode


@click.command()
@click.argument("instance", type=click.Path(path_type=Path))
@click.option("--onnx", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The network.")
@options.method(default="alpha-crown", about="The last bound that is tried.")
@options.attack(default="apgd:loss=margin,steps=100,restarts=5")
@options.seed()
@options.threads
@options.out("The competition's result file: sat with the counterexample, unsat or unknown.", "result", file=True)
@options.json_to("the answer")
@options.quiet
def prove(
    instance: Path, onnx: Path, method: str, attack: str, seed: int, threads: int | None, result: Path | None,
    json_to: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Answer a VNN-LIB INSTANCE of a classifier: holds, violated or unknown.

    \b
    robustkit prove prop_0.vnnlib --onnx net.onnx
    robustkit prove prop_0.vnnlib.gz --onnx net.onnx --method crown --out result.txt
    \b
    violated (sat): an input of the box was found that the judge confirmed. holds (unsat): bounds prove that there is
    none, up to the empirical margin for rounding. unknown: neither.
    Exit codes: 0 holds or violated, 2 bad usage (an instance that asks something else), 3 unknown.
    """  # noqa: D301
    from robustkit.certificates import instances, vnnlib

    asked = vnnlib.read(instance)
    with output.computing(threads=threads, quiet=quiet):
        network, shape = instances.read_network(onnx)
        proof = instances.prove(network, shape, asked, method=method, attack=attack, seed=seed)
    if result is not None:
        result.write_text(proof.result(), encoding="utf-8")
    data = {"schema": "robustkit/proof/1", **proof.to_json()}
    output.tell(data, f"{proof.answer} ({instances.WORDS[proof.answer]}) by {proof.by}", json_to)
    if proof.answer == "unknown":
        end(ExitCode.NOT_ESTABLISHED)
