"""The command line: compute, list, judge, draw, merge and export results, and look after them."""

import json
import logging
import shutil
import sys
import traceback
from pathlib import Path
from typing import Annotated

import jax
import typer

import bayesprompt
from bayesprompt import catalog
from bayesprompt.catalog import CHOICES, CLAIMS, FIGURES, cell_named, cells, choose
from bayesprompt.checks import UserError
from bayesprompt.devices import keep_compiled, use_every_core
from bayesprompt.files import make_folder
from bayesprompt.lab import plan
from bayesprompt.lab.cells import load_cell, problem_with
from bayesprompt.lab.cluster import run_cells as run_on_cluster
from bayesprompt.lab.exchange import export as export_results
from bayesprompt.lab.exchange import merge as merge_results
from bayesprompt.lab.experiment import SCALES, Cell
from bayesprompt.lab.run import Stop, Stopped, run_cells
from bayesprompt.lab.style import own_style
from bayesprompt.provenance import device
from bayesprompt.store import Store

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

# What the parser raises for a wrong option: click's class, or that of the copy that newer typers bring.
_UsageError = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

SeedOption = Annotated[int, typer.Option("--seed", help="another seed is another set of cells")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="a folder with results")]


@app.callback(invoke_without_command=True)
def everywhere(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show where an error comes from")] = False,
) -> None:
    """Prompting is conditioning a Bayesian predictor: the experiments of the book."""
    if version:
        typer.echo(f"bayesprompt {bayesprompt.__version__}")
        raise typer.Exit


@app.command()
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="experiments or sweeps (" + ", ".join(CHOICES) + "); claims with --claims"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="every experiment, without the sweeps")] = False,
    claims: Annotated[bool, typer.Option("--claims", help="what claims wait for, at paper scale")] = False,
    scale: Annotated[str, typer.Option("--scale", help="smoke, quick or paper")] = "quick",
    architecture: Annotated[
        str | None, typer.Option("--architecture", help="bayes, lstm, transformer, gpt or llama")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="a tuning method or baseline, e.g. SoftPT")] = None,
    seed: SeedOption = 0,
    hours: Annotated[float | None, typer.Option("--hours", min=0, help="stop at the last checkpoint in time")] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="a Dask scheduler's address; local, local:4: worker processes here")
    ] = None,
) -> None:
    """Compute what is missing, and resume what was interrupted."""
    store, stop = Store(), Stop(hours)
    if cluster is None:
        device()  # one that is not there is refused now
    if claims:
        todo = _for_claims(names, store)
    elif bool(names) == everything:
        raise UserError(f"NAMES = {names or 'none'}: must be of {', '.join(CHOICES)}, or --all, or --claims")
    else:
        wanted = [cell for name in names or [None] for cell in cells(name, architecture, method, scale, seed)]
        todo = plan.with_bases(wanted)
    make_folder(store.folder)
    keep_compiled(store.folder / "compiled")
    if cluster is None:
        run_cells(todo, store, stop)
    else:
        run_on_cluster(todo, store, stop, cluster, cell_named)


def _for_claims(names: list[str] | None, store: Store) -> list[Cell]:
    """Return the missing cells of undecided claims, the soonest decided first, and say how long they take."""
    for name in names or []:
        choose("CLAIM", name, CLAIMS)
    open_ = plan.undecided(catalog.evaluate(name, store) for name in names or CLAIMS)
    wanted = {claim: plan.missing(map(cell_named, stems), store) for claim, stems in open_.items()}
    known = [cell for scale in SCALES for cell in cells(scale=scale)]
    seconds = {c: plan.expected_seconds(c, known, store) for c in {c for each in wanted.values() for c in each}}
    todo = plan.for_claims(wanted, seconds)
    for claim, each in wanted.items():
        typer.echo(f"{claim}: {len(each)} cells, about {plan.in_words(sum(seconds[c] for c in each))}")
    typer.echo(f"together {len(todo)} cells, about {plan.in_words(sum(seconds[c] for c in todo))}")
    return todo


@app.command("list")
def list_(
    experiment: Annotated[str | None, typer.Argument(help="an experiment or a sweep: " + ", ".join(CHOICES))] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="smoke, quick or paper; default: all")] = None,
    seed: SeedOption = 0,
) -> None:
    """Show each cell, its scale and where its numbers come from."""
    store = Store()
    for chosen in SCALES if scale is None else [scale]:
        for cell in cells(experiment, scale=chosen, seed=seed):
            typer.echo(f"{cell.name:48s} {_state(cell, store)}")


def _state(cell: Cell, store: Store) -> str:
    dataset = load_cell(cell, store)
    if dataset is None:
        return "refused: see `bayesprompt doctor`" if store.find(cell.name) else "missing"
    a = dataset.attrs
    return f"{a['date']}  {a['seconds']:7.0f} s  {a['device']}  version {a['version']}  commit {a['commit'][:12]}"


@app.command()
def claims(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list")] = False,
    record: Annotated[bool, typer.Option("--record", help="keep these verdicts as the ones the book explains")] = False,
) -> None:
    """Judge the papers' claims on the stored results; exit code 1 if one fails."""
    judgements = [catalog.evaluate(claim) for claim in catalog.CLAIMS]
    typer.echo(
        json.dumps([j.to_dict() for j in judgements], indent=1) if as_json else "\n\n".join(map(str, judgements))
    )
    if record:
        catalog.record(judgements)
    if any(j.verdict == "fails" for j in judgements):
        raise typer.Exit(1)


@app.command()
def figures(out: Annotated[Path, typer.Option("--out", help="folder to write to")] = Path("figures")) -> None:
    """Write every paper figure from the stored results, as PNG and PDF."""
    make_folder(out)
    for name in FIGURES:
        figure = catalog.figure(name, Store())
        for suffix in ("png", "pdf"):
            with own_style():
                figure.savefig(out / f"{name}.{suffix}", dpi=200, bbox_inches="tight")
            typer.echo(out / f"{name}.{suffix}")


@app.command()
def merge(folder: FolderArgument) -> None:
    """Take finished cells and checkpoints from a folder, after checking them; exit code 2 if one is refused."""
    if not folder.is_dir():
        raise UserError(f"DIR = {folder}: must be a folder with results files")
    outcomes = merge_results(folder, Store(), cell_named)
    for name, outcome in outcomes:
        typer.echo(f"{name:48s} {outcome}")
    if any(outcome.startswith("refused") for _, outcome in outcomes):
        raise typer.Exit(2)


@app.command()
def export(
    folder: FolderArgument,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="checkpoints of broken-off runs, too")] = False,
) -> None:
    """Pack your own results into files of at most 15 MiB, for `merge` on another machine."""
    for path in export_results(folder, Store(), unfinished):
        typer.echo(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")


@app.command()
def doctor() -> None:
    """Print versions, devices and the state of the results on disk; exit code 1 if something is wrong."""
    typer.echo(f"bayesprompt {bayesprompt.__version__}, Python {sys.version.split()[0]}, jax {jax.__version__}")
    store, wrong = Store(), []
    try:
        typer.echo(f"device: {device()} ({len(jax.devices())} of them)")
    except UserError as error:
        wrong.append(str(error))
    for folder in store.folders:
        files = sorted(folder.glob("[!.]*")) if folder.is_dir() else []
        stored = [path for path in files if path.suffix in (".nc", ".safetensors")]
        typer.echo(f"results: {folder}: {sum(path.suffix == '.nc' for path in stored)} cells")
        wrong += [problem for path in stored if (problem := problem_with(path, cell_named(path.stem), store))]
        for path in files:
            if path.suffix == ".partial":
                typer.echo(f"  unfinished: {path.name}")
    try:
        make_folder(store.folder)
        free = shutil.disk_usage(store.folder).free / 2**30
        typer.echo(f"your results go to {store.folder} ({free:.1f} GiB free)")
    except UserError as error:
        wrong.append(str(error))
    for problem in wrong:
        typer.echo(f"  {' '.join(problem.split())}")
    if wrong:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what a person can mend is one line and exit code 2, anything else shows where it is."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    use_every_core()
    again = "the same command continues from the last checkpoint"
    code, words = 0, ""
    try:
        code = app(standalone_mode=False) or 0
    except _UsageError as error:
        error.show()
        code = error.exit_code
    except Stopped as stopped:
        code, words = (128 + stopped.signal if stopped.signal else 0), f"stopped: {again}"
    except (KeyboardInterrupt, typer.Abort):
        code, words = 130, f"stopped: {again}"
    except (UserError, ImportError, OSError, jax.errors.JaxRuntimeError) as error:
        code, words = 2, f"error: {' '.join(str(error).split())}"
        if "--debug" in sys.argv:
            traceback.print_exc()
    if words:
        print(words, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
