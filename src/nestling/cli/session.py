"""``nestling session``: inner states on the disk, to look at, to feed and to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# torch takes seconds to import: every command imports what it needs when it runs.
Argument, Option = typer.Argument, typer.Option
app = typer.Typer(
    no_args_is_help=True,
    help="Inner states that outlive the process: what a model has learned in context.",
)

Directory = Annotated[Path, Argument(metavar="SESSION", help="Directory of a session.")]
Checkpoint = Annotated[
    Path | None,
    Option(
        help="Of the model: a step-* directory, a run, or what 'nestling stack' wrote. Known to a "
        "session once begun."
    ),
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps.")]
Keep = Annotated[int | None, Option(help="Saves kept from now on (5 at first).", min=1)]
Back = Annotated[int, Option("--back", "-n", help="How many saves ago; 0 is the newest.", min=0)]


@app.command("list")
def list_sessions(
    directory: Annotated[Path, Argument(help="A folder of sessions, or one session.")] = Path(),
) -> None:
    """List the sessions of a folder: model, position, size, and whether it grows with the text."""
    from nestling.cli.session_tables import print_sessions

    print_sessions(directory)


@app.command()
def show(directory: Directory) -> None:
    """Show one session: its memories by level with their bytes, and its saves."""
    from nestling.cli.session_tables import print_session

    print_session(directory)


@app.command()
def diff(
    a: Annotated[str, Argument(metavar="A", help="A session, or one save of it: SESSION@NUMBER.")],
    b: Annotated[
        str | None,
        Argument(metavar="B", help="The other; without it, A's newest save and the one before."),
    ] = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
) -> None:
    """How far each memory moved from A to B: the norm of the change over the norm in A."""
    from nestling.cli.session_tables import print_difference

    print_difference(a, b, checkpoint=checkpoint, device=device)


@app.command()
def feed(
    directory: Directory,
    file: Annotated[Path, Argument(help="UTF-8 text, fed as it is; - is stdin.")],
    checkpoint: Checkpoint = None,
    skip: Annotated[
        int, Option(help="Tokens at the start of FILE that were read before.", min=0)
    ] = 0,
    save_every: Annotated[
        int | None, Option(help="Tokens between two saves (only at the end).", min=1)
    ] = None,
    piece: Annotated[int | None, Option(help="Tokens read at once (1024).", min=1)] = None,
    keep: Keep = None,
    device: Device = "auto",
) -> None:
    """Let a session read a text, and save it; the session is begun if it is not there.

    Memory does not depend on the length of the text. Ctrl-C and SIGTERM save after the piece that
    is being read and say how to go on.
    """
    from nestling.cli.session_feed import Feeding, feed_file

    feed_file(
        directory,
        Feeding(
            file=file,
            checkpoint=checkpoint,
            skip=skip,
            save_every=save_every,
            piece=piece,
            keep=keep,
            device=device,
        ),
    )


@app.command()
def generate(
    directory: Directory,
    prompt: Annotated[str | None, Option(help="Text to read first.")] = None,
    size: Annotated[int, Option("--bytes", help="Bytes to write.", min=1)] = 500,
    temperature: Annotated[float, Option(help="0 always takes the likeliest.")] = 0.8,
    top_k: Annotated[int | None, Option(help="Draw from so many likeliest tokens.")] = None,
    seed: Annotated[int, Option(help="Of the draws.")] = 0,
    save: Annotated[
        bool, Option("--save/--no-save", help="Remember what was read and written.")
    ] = True,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Go on writing where a session stands; what it writes, it has read, and it is saved."""
    from nestling.cli.session_feed import Writing, generate_text

    generate_text(
        directory,
        Writing(
            prompt=prompt,
            size=size,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            save=save,
            checkpoint=checkpoint,
            device=device,
        ),
    )


@app.command()
def fork(
    directory: Directory,
    target: Annotated[Path, Argument(metavar="NEW", help="Directory of the new session.")],
    back: Back = 0,
) -> None:
    """Begin a session where another stands; the other is not touched."""
    from nestling.session import fork_save

    made = fork_save(directory, target, back=back)
    typer.echo(f"{target}: forked from {directory} at position {made.position:,}")


@app.command()
def rollback(
    directory: Directory,
    back: Annotated[int, Option("--back", "-n", help="How many saves.", min=1)] = 1,
) -> None:
    """Go back to an earlier save and forget what came after it."""
    from nestling.session import roll_back

    save = roll_back(directory, back)
    typer.echo(f"{directory}: back at save {save.number}, position {save.position:,}")


@app.command("export")
def export_state(
    directory: Directory,
    file: Annotated[Path, Argument(help="FILE.safetensors; the header goes to FILE.json.")],
    back: Back = 0,
) -> None:
    """Copy a saved state to one .safetensors file and its JSON header."""
    from nestling.session import export_save

    save = export_save(directory, file, back=back)
    typer.echo(f"{file}: {save.bytes:,} bytes, position {save.position:,}")


@app.command("import")
def import_state(
    file: Annotated[Path, Argument(help="FILE.safetensors, with FILE.json beside it.")],
    directory: Directory,
) -> None:
    """Begin a session with an exported state; its model is found when it is used."""
    from nestling.session import import_save

    save = import_save(file, directory)
    typer.echo(f"{directory}: begun with {file} at position {save.position:,}")
