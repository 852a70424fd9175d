"""How a command ends: an error is one line, the code is one of `ExitCode`, and a reader who leaves changes nothing.

Python itself ends with 1 after an exception, which is what the gate's failure means; so no exception leaves a command.
"""

import contextlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from robustkit import DISTRIBUTION, __version__
from robustkit.errors import ExitCode, RobustkitError, Terminated
from robustkit.words import nearest

DEBUG = "robustkit.debug"  # where `--debug` is kept in a context's meta
_HERE = Path(__file__).parents[1]
_PLUGINS = ("robustkit_attacks", "robustkit_defenses")
# What the distribution needs, and itself: where one cannot be imported, the installation is broken, not the request.
NEEDED = (
    "torch", "numpy", "click", "rich", "pandas", "pyarrow", "safetensors", "jaxtyping", "platformdirs", "filelock",
    "requests", "scipy",
)  # fmt: skip


def end(code: ExitCode) -> NoReturn:
    """End a command with a code of ours; what calls `sys.exit` is code of others."""
    raise click.exceptions.Exit(code)


def fail(text: str, code: ExitCode | int) -> NoReturn:
    """End a command with one line on stderr."""
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    raise click.exceptions.Exit(code)


@contextlib.contextmanager
def told(context: click.Context) -> Iterator[None]:
    """Within it an error of any kind ends the command with one line and its code; a traceback only with --debug."""
    try:
        yield
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        raise
    except BaseException as error:
        if context.meta.get(DEBUG):
            traceback.print_exception(error)
        fail(*_said(error))


def _said(error: BaseException) -> tuple[str, ExitCode]:
    """An error in words, and the code it ends a command with."""
    if broken := _broken_installation(error):
        return broken, ExitCode.UNEXPECTED
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "robustkit"
        said = _option(error) if isinstance(error, click.NoSuchOption) else error.format_message().rstrip(".")
        return f"{said}{' See' if said.endswith('?') else '; see'} {command} --help", ExitCode.USAGE
    if isinstance(error, click.Abort):  # at a question
        cause = error.__context__
        return _said(cause) if isinstance(cause, KeyboardInterrupt) else ("no answer was given", ExitCode.USAGE)
    if isinstance(error, RobustkitError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), ExitCode.USAGE
    if isinstance(error, Terminated):
        return "ended by SIGTERM; run the same command to continue", ExitCode.TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command to continue", ExitCode.INTERRUPTED
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return f"{error.filename or 'the file system'}: {error.strerror or error}", ExitCode.USAGE
    return unexpected(error), ExitCode.UNEXPECTED


def _broken_installation(error: BaseException | None) -> str | None:
    """Which package that robustkit needs is not there or does not import, if that is behind an error; in one line."""
    while error is not None:
        if lost := _not_imported(error):
            name = type(error).__name__
            return (
                f"this installation is broken: {lost} cannot be imported ({name}: {error}); put it right with: "
                f"pip install --force-reinstall {lost}"
            )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _not_imported(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and error.name in NEEDED:
        return error.name
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in ("robustkit", *_PLUGINS):
        return DISTRIBUTION
    # One that is there and fails is the first that runs after the import in a file of ours.
    first, ours = None, False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module in ("robustkit", *_PLUGINS):
            first, ours = None, True
        elif first is None and ours and not module.startswith("importlib"):
            first = module if frame.f_code.co_name == "<module>" else ""
    return first if first in NEEDED else None


def _option(error: click.NoSuchOption) -> str:
    """An option that is not there, and the one that is near it."""
    params = error.ctx.command.params if error.ctx else ()
    known = {opt.lstrip("-"): opt for param in params if isinstance(param, click.Option) for opt in param.opts}
    close = [known[name] for name in nearest(error.option_name.lstrip("-"), known)]
    return f"no option {error.option_name}" + (f"; did you mean {' or '.join(close)}?" if close else "")


def unexpected(error: BaseException) -> str:
    """An error that nobody foresaw: what it is, where it was raised and by what of ours that was called."""
    name = type(error).__name__
    said = f"{name}: {error}" if str(error) else name
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {_place(frames[-1])}" if frames else ""
    if ours := next((frame for frame in reversed(frames) if _is_ours(frame)), None):
        at += f", called at {_place(ours)}" if ours is not frames[-1] else ""
    if isinstance(error, SystemExit):
        return f"a model, data set or plugin ended the process, sys.exit({error.code!r}){at}; take that out"
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return f"out of memory ({said}){at}; a smaller --batch-size, --tile or -n needs less"
    return (
        f"unexpected {said}{at}; --debug shows the traceback, and unless this is code of yours, please report it with "
        f"the command (robustkit {__version__}, Python {sys.version.split()[0]}, {sys.platform})"
    )


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(_HERE) or any(p in Path(frame.filename).parts for p in _PLUGINS)


def _place(frame: traceback.FrameSummary) -> str:
    """A file and a line, without the folders that are only this machine's."""
    path = Path(frame.filename)
    if path.is_relative_to(_HERE):
        inner = path.relative_to(_HERE.parent).parts
    else:
        tops = [k for k, part in enumerate(path.parts) if part in (*_PLUGINS, "site-packages")]
        inner = path.parts[tops[-1] if tops else -1 :]
    return f"{'/'.join(inner)}:{frame.lineno}"


def code_of(run: Callable[[], Any]) -> int:
    """Run click's `main` in its mode that returns; the exit code of whatever comes of it."""
    try:
        code = run()
    except SystemExit as ended:  # the shell's completion, which ends by itself
        return ExitCode.USAGE if ended.code else ExitCode.DONE
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.Abort as error:  # before any command began
        return _said(error)[1]
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except BaseException as error:
        click.echo(f"Error: {' '.join(_said(error)[0].split())}", err=True)
        return _said(error)[1]
    return code if isinstance(code, int) else ExitCode.DONE


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated` in the main thread, unless the process has its own way with it."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Within it stdout and stderr take what is written even when nobody reads it any more, or there is neither.

    So `| head` ends no evaluation, and its exit code is still what it found.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_lasting(stream, name) for stream, name in zip(before, ("stdout", "stderr"), strict=True))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None, name: str) -> TextIO:
    if stream is None:  # closed before we began
        return open(os.devnull, "w", encoding="utf-8")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if type(raw) is not io.FileIO or not isinstance(stream, io.TextIOWrapper):
        return stream  # a test's, a notebook's
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(raw.fileno(), name)), encoding=stream.encoding, errors=stream.errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


class _Lasting(io.FileIO):
    """A file that swallows what its reader does not want; another error it gives once, so that the end is quiet."""

    def __init__(self, descriptor: int, title: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._title, self._lost = title, False

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._lost:
            return size
        try:
            return super().write(data)
        except OSError as error:
            self._lost = True
            if isinstance(error, BrokenPipeError):
                return size
            raise OSError(error.errno, error.strerror, self._title) from error
