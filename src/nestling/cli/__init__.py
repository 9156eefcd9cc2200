"""The command line: train, generate, inspect, demo, session, stack, learn, reproduce.

Options that are not given are left to the library's defaults, or on ``--resume`` to the run that
goes on. An error is one line on standard error and exit code 2; Ctrl-C ends with 130, after saving.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import nestling
from nestling.cli.session import app as session_app

# torch takes seconds to import: every command imports what it needs when it runs.
Option = typer.Option
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Nested Learning: sequence models that keep learning.",
)
app.add_typer(session_app, name="session")


def main() -> None:
    """Run a command; every expected error becomes one line and exit code 2."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # torch's threads wait for each other by spinning. With other work on the cores that halves
        # the speed of a small model (measured: 400 against 900 tokens/s next to two busy
        # processes); a short spin costs nothing on idle cores. Read when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        _fail(error)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate" not in str(error):
            raise
        _fail(RuntimeError("out of memory: try a smaller --batch or --length, with --accumulate"))


def _fail(error: BaseException) -> None:
    if os.environ.get("NESTLING_TRACEBACK"):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"nestling: error: {text}", file=sys.stderr)
    sys.exit(2)


def _version(asked: bool) -> bool:
    if asked:
        print(f"nestling {nestling.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    texts: Annotated[
        list[Path] | None,
        typer.Argument(help="Text files, folders or .jsonl files (UTF-8).", show_default=False),
    ] = None,
    out: Annotated[Path | None, Option(help="Run directory (runs/PRESET-SIZE).")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint.")] = False,
    preset: Annotated[
        str | None, Option(help="hope (default), hope_attention, transformer, titans, ...")
    ] = None,
    size: Annotated[str | None, Option(help="tiny (default), mini, small, base, ...")] = None,
    override: Annotated[
        list[str] | None,
        Option("--set", help="Any number of the model, as in width=64 or periods=[1,4096]."),
    ] = None,
    tokenizer: Annotated[str | None, Option(help="bytes (default), or a tokenizer.json.")] = None,
    field: Annotated[str | None, Option(help="Field of .jsonl rows (text).")] = None,
    held_out: Annotated[float | None, Option(help="Fraction kept for measuring (0.05).")] = None,
    steps: Annotated[int | None, Option(help="Optimizer steps of the whole run (1000).")] = None,
    batch: Annotated[int | None, Option(help="Sequences per forward pass (8).")] = None,
    length: Annotated[int | None, Option(help="Tokens per sequence (256).")] = None,
    accumulate: Annotated[int | None, Option(help="Forward passes per step (1).")] = None,
    optimizer: Annotated[
        str | None, Option(help="adamw (default), m3, muon, adamuon, dmgd, momentum, ...")
    ] = None,
    lr: Annotated[float | None, Option(help="Peak learning rate (0.003).")] = None,
    warmup: Annotated[
        int | None, Option(help="Steps of linear warm-up (a tenth, at most 100).")
    ] = None,
    floor: Annotated[float | None, Option(help="Last learning rate / peak (0.1).")] = None,
    weight_decay: Annotated[float | None, Option(help="Of matrices (0.1).")] = None,
    clip: Annotated[float | None, Option(help="Largest gradient norm (1.0); 0: no limit.")] = None,
    precision: Annotated[str | None, Option(help="float32 (default) or bfloat16.")] = None,
    carry_state: Annotated[
        bool | None,
        Option("--carry-state/--random-windows", help="Read on in order and carry inner state."),
    ] = None,
    seed: Annotated[int | None, Option(help="Of weights and windows (0).")] = None,
    log_every: Annotated[int | None, Option(help="Steps between two lines (1).")] = None,
    eval_every: Annotated[
        int | None, Option(help="Steps between measurements (200); 0: end.")
    ] = None,
    save_every: Annotated[
        int | None, Option(help="Steps between checkpoints (200); 0: end.")
    ] = None,
    keep: Annotated[int | None, Option(help="Checkpoints kept (2).")] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    threads: Annotated[int | None, Option(help="CPU threads.")] = None,
) -> None:
    """Train a model on text. SIGTERM and Ctrl-C save first; --resume goes on to the last bit."""
    given = {name: value for name, value in locals().items() if value is not None}
    from nestling.cli.training import run_training

    run_training(given)


@app.command()
def learn(
    model: Annotated[str, typer.Argument(help="A run, a checkpoint, or a preset for a new model.")],
    texts: Annotated[list[Path], typer.Argument(help="Text files, learned in this order.")],
    out: Annotated[Path, Option(help="Where the learned model and the report go.")] = Path(
        "learned"
    ),
    strategy: Annotated[
        str, Option(help="consolidated (nothing stored), sequential, replay.")
    ] = "consolidated",
    lr: Annotated[float, Option(help="Step size.")] = 2e-3,
    batch: Annotated[int, Option(help="Sequences per step.")] = 8,
    length: Annotated[int, Option(help="Tokens per sequence.")] = 128,
    passes: Annotated[int, Option(help="Times that each text is read.")] = 1,
    held_out: Annotated[float, Option(help="Share of each text kept for measuring.")] = 0.1,
    stored: Annotated[int, Option(help="Sequences that replay keeps.")] = 256,
    size: Annotated[str, Option(help="Of a new model.")] = "tiny",
    seed: Annotated[int, Option(help="Of weights, order and dreams.")] = 0,
) -> None:
    """Learn texts one after the other and show what was kept. The same command goes on."""
    given = {**locals(), "texts": tuple(texts)}
    from nestling.cli.learn import Request, learn_texts

    learn_texts(Request(**given))


@app.command()
def reproduce(
    target: Annotated[str | None, typer.Argument(help="What; without it: what there is.")] = None,
    data: Annotated[Path, Option(help="Folder of the data sets.")] = Path("data"),
    size: Annotated[
        str, Option(help="smoke: a minute; cpu: the real thing; validation: the other stream.")
    ] = "cpu",
    task: Annotated[list[str] | None, Option(help="Only these tasks.")] = None,
    model: Annotated[list[str] | None, Option(help="Only these models.")] = None,
    strategy: Annotated[list[str] | None, Option(help="Only these strategies.")] = None,
    seed: Annotated[list[int] | None, Option(help="Only these seeds.")] = None,
    rows: Annotated[Path, Option(help="Folder of the rows.")] = Path("benchmarks/results"),
    page: Annotated[Path | None, Option(help="Page with the tables; the target's own.")] = None,
    work: Annotated[Path, Option(help="Folder of unfinished runs.")] = Path("runs/reproduce"),
) -> None:
    """Make the rows of a claim that are missing, and the page from all rows. It can be stopped."""
    from nestling.cli.reproduce import Request
    from nestling.cli.reproduce import reproduce as run

    only = {"tasks": task, "models": model, "strategies": strategy, "seeds": seed}
    run(
        None if target is None else Request(
            target=target, data=data, size=size, rows=rows, page=page, work=work,
            **{name: tuple(values or ()) for name, values in only.items()},
        )
    )  # fmt: skip


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A step-* directory, or a run (its newest).")],
    prompt: Annotated[str | None, Option(help="Text to go on from.")] = None,
    prompt_file: Annotated[Path | None, Option(help="The same, from a file; - is stdin.")] = None,
    size: Annotated[int, Option("--bytes", help="Bytes to write.", min=1)] = 500,
    temperature: Annotated[float, Option(help="0 always takes the likeliest.")] = 0.8,
    top_k: Annotated[int | None, Option(help="Draw from so many likeliest tokens.")] = None,
    seed: Annotated[int, Option(help="Of the draws.")] = 0,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Write text with a trained model: the prompt is read once, then one token at a time."""
    from nestling.cli.generation import Request, generate_text

    generate_text(
        checkpoint,
        Request(
            prompt=prompt,
            prompt_file=prompt_file,
            size=size,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            device=device,
        ),
    )


@app.command()
def inspect(
    what: Annotated[str, typer.Argument(help="A preset, a step-* directory, or a run.")],
    size: Annotated[str, Option(help="Of a preset: tiny, mini, small, base, ...")] = "tiny",
    override: Annotated[
        list[str] | None, Option("--set", help="Of a preset, as in width=64 or periods=[1,4096].")
    ] = None,
    json_file: Annotated[
        str | None,
        Option("--json", metavar="FILE", help="Write the system as JSON; - for standard output."),
    ] = None,
    svg_file: Annotated[
        str | None, Option("--svg", metavar="FILE", help="Draw the system as an SVG picture.")
    ] = None,
) -> None:
    """Print every component of a model and its training, fastest first: the level table."""
    from nestling.cli.level_table import print_levels

    print_levels(what, size=size, overrides=override or [], json_file=json_file, svg_file=svg_file)


@app.command("eval")
def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(help="A run, a checkpoint, or a model of transformers (stacked or not)."),
    ] = None,
    tasks: Annotated[
        list[str] | None, Option(help="Of lm-eval, or of --include-path: a,b,c.")
    ] = None,
    include_path: Annotated[
        list[Path] | None, Option(help="Folder with YAML tasks of your own.")
    ] = None,
    writes: Annotated[
        str | None, Option(help="on: a request's text is learned while read (default); off.")
    ] = None,
    session: Annotated[
        Path | None, Option(help="Saved session where every request starts; it stays as it is.")
    ] = None,
    limit: Annotated[int | None, Option(help="Documents of each task (all).", min=1)] = None,
    shots: Annotated[int | None, Option(help="Worked examples (as the task says).", min=0)] = None,
    batch: Annotated[int, Option(help="Requests read at once.", min=1)] = 1,
    length: Annotated[
        int | None, Option(help="Tokens of a request (the model's limit, or 2048).", min=2)
    ] = None,
    tokenizer: Annotated[Path | None, Option(help="Directory to take it from instead.")] = None,
    out: Annotated[Path | None, Option(help="Write everything as JSON to this file.")] = None,
    show: Annotated[bool, Option("--list", help="Show the usual tasks and stop.")] = False,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Evaluate a model on tasks of lm-eval, with writes on or off."""
    from nestling.cli.evaluation import Request, evaluate_model, print_tasks

    if show:
        print_tasks()
        return
    names = [name.strip() for item in tasks or [] for name in item.split(",") if name.strip()]
    evaluate_model(
        Request(
            model=model, tasks=names, include=include_path or [], writes=writes, session=session,
            tokenizer=tokenizer, limit=limit, shots=shots, batch=batch, length=length, out=out,
            device=device,
        )
    )  # fmt: skip


@app.command()
def stack(
    model: Annotated[Path, typer.Argument(help="Directory of a model of transformers.")],
    levels: Annotated[
        str, Option(help="Tokens between two updates of each level, fastest first: 512,2048.")
    ],
    out: Annotated[Path, Option("--out", "-o", help="Directory of the stacked model.")],
    plan: Annotated[
        str, Option(help="layer_mod_levels: layer j is level j mod k; split: all in each layer.")
    ] = "layer_mod_levels",
    layers: Annotated[str | None, Option(help="Only these layers: 4,5,6 (all).")] = None,
    step_size: Annotated[float, Option(help="Of every write; 0 is the original model.")] = 0.1,
    error_rule: Annotated[
        str, Option(help="gradient_descent, delta, heavy_ball, adam.")
    ] = "gradient_descent",
    kept: Annotated[float, Option(help="Share of what was written that stays at a write.")] = 1.0,
    matrices: Annotated[str, Option(help="last, or every matrix of an MLP.")] = "last",
    rank: Annotated[int | None, Option(help="Of what is written (full matrices).")] = None,
    window: Annotated[
        int | None, Option(help="Most tokens that a chunk finds in the cache (all).")
    ] = None,
) -> None:
    """Make the MLPs of a pre-trained model levels that learn while it reads."""
    options = {name: value for name, value in locals().items() if name not in ("model", "out")}
    from nestling.cli.stack import Stacking, stack_model

    stack_model(model, out, Stacking(**options))


@app.command()
def demo(
    more: Annotated[list[Path] | None, typer.Argument(help="More texts.", hidden=True)] = None,
    text: Annotated[
        list[Path] | None, Option(help="Your own texts, one domain each: --text a.txt b.txt ...")
    ] = None,
    out: Annotated[Path, Option(help="Where the results and the report go.")] = Path(
        "nestling-demo"
    ),
    short: Annotated[bool, Option("--short", help="A quick look: under a minute.")] = False,
    seed: Annotated[int, Option(help="Of weights and batches.")] = 0,
) -> None:
    """Watch Hope and a Transformer++ learn real texts one after the other (about 5 minutes)."""
    from nestling.demo import main as run

    run([*(text or []), *(more or [])], out=out, seed=seed, short=short)
