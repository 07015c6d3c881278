"""The commands `jaxlm models ...`: the shelf of models in a folder."""

from dataclasses import dataclass, field

from rich.table import Table

from jaxlm.common.command_line import make_console
from jaxlm.common.run.summary import format_bytes
from jaxlm.common.shelf.card import card_text
from jaxlm.common.shelf.entry import Shelved, printable
from jaxlm.common.shelf.shelf import Shelf
from shared_tokenizer.settings import setting


@dataclass(frozen=True)
class _ShelfConfig:
    root: str | None = field(default=None, kw_only=True)
    """Folder of the shelf; by default the one that JAXLM_MODELS names, else models."""

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.root)


@dataclass(frozen=True, kw_only=True)
class ListConfig(_ShelfConfig):
    """The shelf."""


@dataclass(frozen=True, kw_only=True)
class NameConfig(_ShelfConfig):
    """A model of the shelf."""

    name: str = setting(by_position=True)
    """NAME@VERSION, or NAME for its newest version; the name of the flag may be left out."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(_ShelfConfig):
    """One model of the shelf, or all of them."""

    name: str | None = setting(None, by_position=True)
    """NAME@VERSION, or NAME for its newest version; without it all models are compared."""


@dataclass(frozen=True)
class AddConfig(_ShelfConfig):
    """A model and its name."""

    source: str
    """Run (its artifact is taken), model directory or GGUF file."""
    name: str
    """Name on the shelf; the version is the next one."""
    license: str | None = None
    """Licence, as the hub writes it: apache-2.0, mit, ..."""
    notes: str = ""
    """Notes for people, which the card shows."""


@dataclass(frozen=True)
class RenameConfig(_ShelfConfig):
    """A model and its new name."""

    name: str
    """NAME for all its versions, or NAME@VERSION for one."""
    new_name: str
    """The name that it gets."""


@dataclass(frozen=True)
class PullConfig(_ShelfConfig):
    """A repository of the hub."""

    repository: str
    """OWNER/NAME."""
    name: str | None = None
    """Name on the shelf; by default that of the repository."""
    revision: str | None = None
    """Branch, tag or commit; the commit is recorded."""


@dataclass(frozen=True)
class PushConfig(_ShelfConfig):
    """A model of the shelf, and a repository of the hub."""

    name: str
    """NAME@VERSION, or NAME for its newest version."""
    repository: str
    """OWNER/NAME; it is created where it is not there."""
    private: bool = True
    """Create it for yourself alone."""


def list_models(config: ListConfig) -> None:
    """List all models of the shelf."""
    console, shelf = make_console(), config.shelf
    found = shelf.entries(console.print)
    if found:
        table = Table(box=None, pad_edge=False)
        for heading in ("model", "form"):
            table.add_column(heading)
        for heading in ("parameters", "bytes", "bits/byte"):
            table.add_column(heading, justify="right")
        table.add_column("added")
        for each in found:
            bits = each.entry.bits_per_byte
            table.add_row(
                str(each.name),
                f"{each.entry.form} {printable(each.entry.family)}",
                f"{each.entry.parameters:,}",
                format_bytes(each.entry.bytes),
                "-" if bits is None else f"{bits:.4f}",
                each.entry.added[:10],
            )
        console.print(table)
    else:
        console.print(f"{shelf.root}: holds no model; add one: jaxlm models add RUN NAME")
    if trash := shelf.trash():
        console.print(f"in the trash: {', '.join(map(str, trash))}; delete {shelf.root / '.trash'} to free its room")


def show(config: NameConfig) -> None:
    """Print all that is known of a model."""
    console, found = make_console(), config.shelf.find(config.name)
    entry, run = found.entry, found.entry.run
    rows: list[tuple[str, object]] = [
        ("model", found.name),
        ("load it from", found.model),
        ("form", f"{entry.form} {entry.family}"),
        ("parameters", f"{entry.parameters:,}, {entry.ternary_parameters / entry.parameters:.0%} ternary"),
        ("vocabulary", f"{entry.vocab_size:,} tokens, a context of {entry.max_seq_len:,}"),
        ("bytes", f"{entry.bytes:,}"),
        ("sha256", entry.sha256),
        ("source", entry.source),
        ("added", entry.added),
        ("licence", entry.licence or "not given"),
        *((name.replace("_", " "), f"{value:.6g}") for name, value in entry.evaluation.items()),
        *((name, run[name]) for name in ("name", "steps", "tokens") if run.get(name) is not None),
        *(dict(run.get("recipe") or {}).items()),
        *((f"sha256 of {what}", value) for what, value in dict(run.get("fingerprints") or {}).items()),
        *(("notes", line) for line in entry.notes.splitlines()),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(printable(str(name)), printable(str(value)))
    console.print(table)


def add(config: AddConfig) -> None:
    """Copy a model, or the artifact of a run, onto the shelf."""
    found = config.shelf.add(config.source, config.name, licence=config.license, notes=config.notes)
    _print_added(found)


def verify(config: VerifyConfig) -> None:
    """Compare models of the shelf with the digests that were taken when they were added."""
    console, shelf = make_console(), config.shelf
    names = [config.name] if config.name is not None else [str(each.name) for each in shelf.entries(console.print)]
    damaged = 0
    for name in names:
        differences = shelf.verify(name)
        damaged += bool(differences)
        console.print(f"{name}: {'differs' if differences else 'as it was added'}")
        for words in differences:
            console.print(f"  {printable(words)}")
    if damaged:
        raise ValueError(
            f"{shelf.root}: {damaged} of {len(names)} models differ from what was added; see the lines above"
        )


def rename(config: RenameConfig) -> None:
    """Give a name of the shelf, or one version of it, another name."""
    moved = config.shelf.rename(config.name, config.new_name)
    make_console().print(f"{config.name} is now {', '.join(str(each.name) for each in moved)}")


def remove(config: NameConfig) -> None:
    """Move a version into the trash of the shelf, from which restore brings it back."""
    place, console = config.shelf.remove(config.name), make_console()
    console.print(f"{config.name} is in the trash; jaxlm models restore {config.name} brings it back")
    console.print(f"to free its room, delete {place}")


def restore(config: NameConfig) -> None:
    """Bring a version back from the trash of the shelf."""
    make_console().print(f"{config.shelf.restore(config.name).name} is on the shelf again")


def card(config: NameConfig) -> None:
    """Print the card of a model, as README.md of a repository of the hub."""
    print(card_text(config.shelf.find(config.name)), end="")


def pull_model(config: PullConfig) -> None:
    """Copy a model of the Hugging Face hub onto the shelf."""
    from jaxlm.common.shelf.hub import pull

    _print_added(pull(config.shelf, config.repository, config.name, revision=config.revision))


def push_model(config: PushConfig) -> None:
    """Copy a model of the shelf, with its card, into a repository of the Hugging Face hub."""
    from jaxlm.common.shelf.hub import push

    commit = push(config.shelf, config.name, config.repository, private=config.private)
    make_console().print(f"{config.name} is commit {commit} of {config.repository}; every file was compared")


def _print_added(found: Shelved) -> None:
    make_console().print(
        f"{found.name}: {found.entry.parameters:,} parameters, {format_bytes(found.entry.bytes)}, in {found.folder}"
    )
