"""`msun-fastai predict`: label images of any size with a trained model."""

from __future__ import annotations

from typing import Annotated

import typer


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, globs in quotes, or - for a list of files on standard "
            "input, one a line.",
            metavar="PATH...",
        ),
    ],
    model: Annotated[str, typer.Option(help="Run folder or model folder.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Write one row an image to this .csv, .json, .jsonl or .parquet, as it goes."
        ),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            help="Write what the classifier sees of each image to this .npy or .parquet, a row an "
            "image."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run that was stopped left its files.")
    ] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="The list on standard input is cut by zero bytes.")
    ] = False,
    top: Annotated[int, typer.Option(help="How many classes to list.", min=1)] = 5,
    tta: Annotated[
        bool, typer.Option("--tta", help="The mean over the image and its mirror image.")
    ] = False,
    bs: Annotated[
        str | None,
        typer.Option(
            help="Images in a batch, or auto: what is fastest here, by a trial; 16 on a CPU, else "
            "64."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode; one a core, up to 8.", min=1)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.")
    ] = None,
    precision: Annotated[str, typer.Option(help="full or bf16.")] = "full",
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", help="Write the rows as JSON to this file; - for standard output."),
    ] = None,
) -> None:
    """Predict images of any size; those that cannot be read are listed with the reason.

    The exit code is 1 if any image could not be read.
    """
    from msun_fastai.cli.output import check_output, json_rows, make_console, say
    from msun_fastai.cli.tally import Tally
    from msun_fastai.data.inputs import iter_paths
    from msun_fastai.errors import UserError
    from msun_fastai.progress import refuse_unfinished
    from msun_fastai.rowfiles import ARRAYS, TABLES, check_ending

    for option, file, endings in (("--out", out, TABLES), ("--embeddings", embeddings, ARRAYS)):
        check_ending(option, file, endings)
        check_output(option, file)
    check_output("--json", json_file)
    if out is not None and out == embeddings:
        raise UserError(f"--embeddings {embeddings}: is --out, too; give them a file each")
    if resume and (json_file is not None or out is embeddings is None):
        raise UserError("--resume: goes on with --out or --embeddings, and not with --json")
    if not resume:
        refuse_unfinished(file for file in (out, embeddings) if file is not None)
    batch = batch_size(bs)
    images = iter_paths(paths, null)

    from msun_fastai.inference import Options
    from msun_fastai.memory import keep_freed_memory
    from msun_fastai.predict import Predictor
    from msun_fastai.predict_files import PredictionFiles, checksum

    keep_freed_memory()
    console = make_console(json_file)
    options = Options(tta, precision, compiled, embeddings is not None)
    predictor = Predictor.from_run(
        *(model, device),
        bs=batch,
        workers=workers,
        options=options,
        tell=lambda line: say(console, line),
    )
    about = {"--model": checksum(model), "--top": top, "--bs": predictor.inference.bs, "--tta": tta}
    about |= {"--precision": precision, "--compile": compiled}
    files = PredictionFiles(predictor, out, embeddings, about, resume)
    tally = Tally(console, files.counts)
    with json_rows(json_file) as write, tally.shown():
        for chunk in files.chunks(images, top):
            write([p.as_row() for p in chunk])
            tally.add(chunk)
    tally.print()
    if tally.unreadable:
        raise typer.Exit(1)


def batch_size(text: str | None) -> int | str | None:
    """What `--bs` says. Raises `UserError`."""
    from msun_fastai.errors import UserError

    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--bs {text}: a whole number from 1, or auto")
    return int(text)
