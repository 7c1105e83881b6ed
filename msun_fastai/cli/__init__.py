"""The command line: one verb a file, no logic, heavy imports inside the verb."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings

from msun_fastai.errors import Stopped, TrainingError, UserError

# raised by torchvision's own import, about nothing that a user of the command line can change
warnings.filterwarnings("ignore", message=r".*torch\.jit")

# On a CPU, PyTorch's threads wait for each other by spinning, 300,000 turns unless told otherwise.
# With a second training beside it on 2 cores a step then took 25 times as long as alone, with fewer
# turns 4 times; alone it took 7 to 18 % longer so. Read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130
LONGEST = 500  # characters of an error that is not ours
SIGNALLED = 128  # and the signal's number, as shells have it


def main(args: list[str] | None = None) -> None:
    """Run the command line; ends with exit code 0, 1 (failure), 2 (bad input), 130 (Ctrl-C) or 143
    (SIGTERM).

    An error is one line on standard error; `--debug`, anywhere, adds the traceback.
    """
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    sys.exit(_run([a for a in args if a != "--debug"] or ["--help"], debug))


def _run(args: list[str], debug: bool) -> int:
    import typer

    from msun_fastai.cli.app import app

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be anything

    try:
        code = app(args, prog_name="msun-fastai", standalone_mode=False)
        if code == INTERRUPTED:  # typer's own answer to Ctrl-C, which says nothing
            raise KeyboardInterrupt
        return int(code or 0)
    except Stopped as error:
        return _fail(str(error), SIGNALLED + error.signal, debug)
    except TrainingError as error:
        return _fail(str(error), FAILURE, debug)
    except UserError as error:
        return _fail(str(error), BAD_INPUT, debug)
    except typer.Abort as error:  # its answer to a file that ends too early: it takes it for Ctrl-D
        return _fail(_told(error.__cause__ or error, debug), FAILURE, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click, which typer may carry inside
            return _fail(error.format_message(), BAD_INPUT, debug)
        return _fail(_told(error, debug), FAILURE, debug)


def _told(error: BaseException, debug: bool) -> str:
    """An error that is not ours."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if len(text) > LONGEST and not debug:  # a compiler's whole output, say
        text = f"{text[:LONGEST]} ..."
    return f"{text} (--debug shows where)"


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"msun-fastai: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code
