"""The command line: parse, call a verb, turn what went wrong into one line and an exit code.

Nothing heavy is imported at the top, so that ``prefopt --help`` answers at once; every verb brings
its own imports.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Optional

import typer

from prefopt.errors import PrefoptError, RecipeError

INTERNAL = 70
INTERRUPTED = 130
STOPPED = (75, INTERRUPTED)  # ended early on request, nothing is wrong

# typer brings its own copy of click or uses the installed one, by version; its public exception leads to both
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="prefopt",
    help="Train language models on preferences: exact, prefix-shared, padding-free.",
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 bad recipe, model or data, 3 too many bad rows, 4 not finite, "
    "5 resume refused, 6 corrupt file, 70 internal error, 74 cannot write, "
    "75 pre-empted after a checkpoint, 130 interrupted.",
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.", show_default=False)]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Argument(metavar="KEY.PATH=VALUE", help="Settings that replace those of the recipe."),
]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        typer.echo(f"prefopt {metadata.version('prefopt')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
) -> None:
    """Train a model as a recipe says."""
    if resume and overwrite:
        raise RecipeError(
            "command line: --resume goes on with a run, --overwrite replaces it. Give one of them."
        )
    _read_first(recipe, overrides)
    from prefopt.verbs import train as verb

    verb.run(recipe, overrides or [], resume=resume, overwrite=overwrite)


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpu_memory: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(metavar="GIB", min=0.1, help="Plan for a GPU with so much memory; default: that here."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs to plan for, one process each.")] = 1,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Plan for weights spread over the GPUs.")] = False,
) -> None:
    """Show what a recipe would do; train nothing."""
    if fsdp and gpus == 1:
        raise RecipeError("command line: --fsdp spreads weights over GPUs. Give their number with --gpus.")
    _read_first(recipe, overrides)
    from prefopt.verbs import check as verb

    verb.run(recipe, overrides or [], gpu_memory=gpu_memory, gpus=gpus, fsdp=fsdp)


class Dtype(str, Enum):
    """Dtypes that a model is loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder or builtin:tiny.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or hub id, in any known layout.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON-lines file to write.")],
    split: Annotated[Optional[str], typer.Option(help="Split of a hub data set.")] = None,  # noqa: UP045
    adapter: Annotated[Optional[str], typer.Option(help="Adapter on top of the model.")] = None,  # noqa: UP045
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.float32,
    chat_template: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="In place of the tokenizer's own: a Jinja file or its text."),
    ] = None,
    max_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Truncate longer sequences; without it none is."),
    ] = None,
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Most tokens in one forward pass.")] = 16384,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write the log-probs of every answer."""
    from prefopt.verbs import score as verb

    verb.run(
        model,
        data,
        out,
        split=split,
        adapter=adapter,
        dtype=dtype.value,
        chat_template=chat_template,
        max_tokens=max_tokens,
        tokens_per_batch=tokens_per_batch,
        overwrite=overwrite,
    )


@app.command()
def losses(
    name: Annotated[
        Optional[str],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Argument(metavar="[NAME]", help="A loss or transform to explain.", show_default=False),
    ] = None,
) -> None:
    """List the losses, or explain one."""
    from prefopt.verbs import losses as verb

    verb.run(name)


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--output", help="Folder for the run.")] = Path("runs/quickstart"),
) -> None:
    """Train a tiny built-in model in minutes."""
    from prefopt.verbs import quickstart as verb

    verb.run(output)


@app.command()
def version() -> None:
    """Print versions, for a bug report."""
    import platform

    typer.echo(f"prefopt {metadata.version('prefopt')}")
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for name in ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "triton"):
        found = next(iter(metadata.distributions(name=name)), None)
        typer.echo(f"{name} {found.version if found else 'is not installed'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: what follows the program's name; None takes the process's own.
    """
    try:
        code = app(
            args=None if arguments is None else list(arguments), prog_name="prefopt", standalone_mode=False
        )
    except PrefoptError as error:
        return _report(str(error), error.exit_code, "stopped" if error.exit_code in STOPPED else "error")
    except _UsageError as error:
        return _report(_usage(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last door: what nobody foresaw ends in one line too
        return _report(_internal(error), INTERNAL)
    if code == INTERRUPTED:  # newer versions of typer return it where older ones raise
        return _report("interrupted.", INTERRUPTED, "stopped")
    return code if isinstance(code, int) else 0


def _read_first(recipe: Path, overrides: Sequence[str] | None) -> None:
    """Refuse a mistaken recipe at once; what the verbs import takes many times as long."""
    from prefopt.recipe import load_recipe

    load_recipe(recipe, overrides or [])


def _usage(error: Exception) -> str:
    """Say what is wrong with the arguments, and how settings are written."""
    # click words its message in this method; str() leaves out the name of the argument
    message = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
    line = f"command line: {message}" + ("" if message.endswith("?") else ".")
    if found := re.search(r"[Nn]o such option:? '?-+([\w.]+)", message):
        key = found.group(1)
        return f"{line} Settings are written without dashes: {key}=VALUE."
    return f"{line} See `prefopt --help`."


def _internal(error: Exception) -> str:
    handle, path = tempfile.mkstemp(prefix="prefopt-traceback-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"prefopt {metadata.version('prefopt')}, python {sys.version}\n")
        traceback.print_exception(type(error), error, error.__traceback__, file=file)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what[:300]}. This is a bug in prefopt; the traceback is in {path}."


def _report(message: str, code: int, label: str = "error") -> int:
    """Write every line of ``message`` to stderr with its label and return ``code``."""
    rank = os.environ.get("RANK", "0")
    begin = typer.style(f"{label}:", fg="red", bold=True) if sys.stderr.isatty() else f"{label}:"
    for line in message.splitlines():
        typer.echo(f"{begin} {line}" if rank == "0" else f"rank {rank}: {begin} {line}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
