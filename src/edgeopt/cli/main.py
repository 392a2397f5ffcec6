"""The `edgeopt` command: verbs are loaded when they are called, and errors become exit codes here alone."""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from types import FrameType

import click

VERBS = {
    "convert": "Export a model to verified ONNX, LiteRT, Core ML and ExecuTorch files.",
    "run": "Perform a recipe: prune, distil, quantize, export.",
    "init": "Write a commented recipe for a model.",
    "verify": "Run an artifact and compare it with a model or another artifact.",
    "eval": "Score the answers of artifacts on labelled data, per class and group.",
    "bench": "Measure latency, cold start and memory of artifacts, compared in pairs.",
    "gate": "Hold a bundle against budgets of size, latency and accuracy.",
    "report": "Write one page that shows all that is known of a bundle.",
    "predict": "Run an artifact on images or a video and draw what it finds.",
    "sensitivity": "Show what quantizing each layer costs, and which layers to keep in float.",
    "inspect": "Show parameters, MACs, layers, inputs, outputs and operators.",
    "targets": "List the device profiles, or show one.",
    "doctor": "Try every backend that is installed.",
    "cache": "List or clear what finished steps left.",
}


class LazyGroup(click.Group):
    """A group that knows its verbs' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in their usual order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"edgeopt.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Answer an unknown verb with the nearest one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from edgeopt.core.errors import did_you_mean

            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgeopt")
def cli() -> None:
    """Turn a trained model into files that an app team can ship.

    Every file is executed and compared with the original before it is handed over.

    Exit codes: 0 pass, 1 failure, 2 usage, 3 budget exceeded, 4 inconclusive, 130 stopped.
    """


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _terminate)
    as_json = "--json" in sys.argv[1:]
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped", 130, as_json)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        from edgeopt.core.errors import EdgeoptError, NothingExportedError

        if not isinstance(error, EdgeoptError):
            raise
        failures = error.failures if isinstance(error, NothingExportedError) else []
        _fail(str(error), error.exit_code, as_json, failures)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: int, as_json: bool, failures: list[dict[str, object]] | None = None) -> None:
    try:
        if as_json:
            told = {"error": message, "exit_code": code, "failures": failures or []}
            print(json.dumps(told, indent=2), flush=True)  # noqa: T201
        click.echo(f"error: {message}", err=True)
    except BrokenPipeError:  # nobody listens any more
        os._exit(code)
    sys.exit(code)
