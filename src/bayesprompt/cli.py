"""The command line: compute, list, judge, draw and merge results, and look after them."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import typer
import xarray as xr
from tqdm import tqdm

import bayesprompt
from bayesprompt import catalog as claims_
from bayesprompt.checks import UserError
from bayesprompt.devices import keep_compiled, use_every_core
from bayesprompt.figures import PAPER_FIGURES, paper_figure
from bayesprompt.lab.cells import (
    ALL,
    Cell,
    cell_config,
    cells,
    load_cell,
    merge_cells,
    needs_network,
    network_cell,
    repetitions_of,
)
from bayesprompt.prompting.compute import run_cell
from bayesprompt.prompting.experiments import SCALES, SWEEPS, SWEPT
from bayesprompt.store import RefusedFileError, Store, device, make_folder, read_dataset

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ScaleOption = Annotated[str, typer.Option("--scale", help="smoke, quick or paper")]
ArchitectureOption = Annotated[
    str | None, typer.Option("--architecture", help="bayes, lstm, transformer, gpt or llama")
]
MethodOption = Annotated[str | None, typer.Option("--method", help="a tuning method or baseline, e.g. SoftPT")]
SeedOption = Annotated[int, typer.Option("--seed", help="another seed is another set of cells")]
CHOICES = [*(name for name, experiment in ALL.items() if experiment.figures != SWEPT), *SWEEPS]
ExperimentArgument = Annotated[str | None, typer.Argument(help="an experiment or a sweep: " + ", ".join(CHOICES))]


@app.command()
def run(
    experiment: ExperimentArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="every experiment, without the sweeps")] = False,
    scale: ScaleOption = "quick",
    architecture: ArchitectureOption = None,
    method: MethodOption = None,
    seed: SeedOption = 0,
) -> None:
    """Compute what is missing, and resume what was interrupted."""
    if (experiment is None) != everything:
        raise UserError(f"EXPERIMENT = {experiment}: name one of {', '.join(CHOICES)}, or give --all")
    store, wanted = Store(), cells(experiment, architecture, method, scale, seed)
    make_folder(store.folder)
    keep_compiled(store.folder / "compiled")
    bases = [network_cell(c) for c in wanted if needs_network(c)]
    todo = list(dict.fromkeys([*bases, *wanted]))
    # One bar for all cells, in optimisation steps of all repetitions: its estimate is of the whole run.
    steps = {c: cell_config(c).get("fit", {}).get("steps", 0) * (repetitions_of(c)) for c in todo}
    with tqdm(total=sum(steps.values()), unit="step", dynamic_ncols=True, smoothing=0.05) as bar:
        for number, cell in enumerate(todo, 1):
            bar.set_description(f"{cell.name} ({number}/{len(todo)})")
            start = bar.n
            dataset = run_cell(cell, store, _advance(bar, start, repetitions_of(cell)))
            bar.update(start + steps[cell] - bar.n)
            bar.write(f"{cell.name}: {_result(dataset)}, {dataset.attrs['seconds']:.0f} s", file=sys.stdout)


def _result(dataset: xr.Dataset) -> str:
    if "accuracy" in dataset:
        return f"best accuracies {', '.join(f'{best:.1%}' for best in dataset.accuracy.values.max(axis=1))}"
    if "regret" not in dataset:
        return dataset.attrs["summary"]
    last = int(dataset.n[-1])
    return f"R({last}) = {float(dataset.regret.sel(n=last).median()):.3f} nats"


def _advance(bar: tqdm, start: int, repetitions: int) -> Callable[[int, float], None]:
    def progress(step: int, loss: float) -> None:
        bar.update(start + step * repetitions - bar.n)
        bar.set_postfix(loss=f"{loss:.3f}")

    return progress


@app.command("list")
def list_(
    experiment: ExperimentArgument = None,
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
    judgements = claims_.evaluate_all()
    if as_json:
        typer.echo(json.dumps([j.to_dict() for j in judgements], indent=1))
    else:
        typer.echo("\n\n".join(map(str, judgements)))
    if record:
        claims_.record(judgements)
    if any(j.verdict == "fails" for j in judgements):
        raise typer.Exit(1)


@app.command()
def figures(out: Annotated[Path, typer.Option("--out", help="folder to write to")] = Path("figures")) -> None:
    """Write every paper figure from the stored results, as PNG and PDF."""
    make_folder(out)
    for name in PAPER_FIGURES:
        figure = paper_figure(name, Store())
        for suffix in ("png", "pdf"):
            figure.savefig(out / f"{name}.{suffix}", dpi=200, bbox_inches="tight")
            typer.echo(out / f"{name}.{suffix}")


@app.command()
def merge(folder: Annotated[Path, typer.Argument(help="results of another machine")]) -> None:
    """Take finished cells from another folder, after checking them; exit code 2 if one is refused."""
    if not folder.is_dir():
        raise UserError(f"DIR = {folder}: must be a folder with results files")
    outcomes = merge_cells(folder, Store())
    for name, outcome in outcomes:
        typer.echo(f"{name:48s} {outcome}")
    if any(outcome.startswith("refused") for _, outcome in outcomes):
        raise typer.Exit(2)


@app.command()
def doctor() -> None:
    """Print versions, devices and the state of the results on disk; exit code 1 if something is wrong."""
    typer.echo(f"bayesprompt {bayesprompt.__version__}, Python {sys.version.split()[0]}, jax {jax.__version__}")
    typer.echo(f"device: {device()} ({len(jax.devices())} of them)")
    store, wrong = Store(), 0
    for folder in store.folders:
        files = sorted(folder.glob("*.nc")) if folder.is_dir() else []
        typer.echo(f"results: {folder}: {len(files)} cells")
        for path in files:
            try:
                read_dataset(path)
                cell = Cell(*path.stem.split(".")[:4], seed=int(path.stem.split(".")[4]))
                if load_cell(cell, store) is None:
                    raise RefusedFileError(f"{path} = of another configuration or base network: not used; it is kept")
            except (ValueError, IndexError, TypeError, KeyError) as error:
                wrong += 1
                typer.echo(f"  {error}")
        for path in sorted(folder.glob("*.partial")) if folder.is_dir() else []:
            typer.echo(f"  unfinished: {path.name}")
    try:
        make_folder(store.folder)
        free = shutil.disk_usage(store.folder).free / 2**30
        typer.echo(f"your results go to {store.folder} ({free:.1f} GiB free)")
    except ValueError as error:
        wrong += 1
        typer.echo(str(error))
    if wrong:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what a person can mend is one line and exit code 2, never a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    use_every_core()
    try:
        app()
    except (ValueError, ImportError) as error:  # ImportError: a package that only some experiments need
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
