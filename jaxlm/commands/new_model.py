"""The command `jaxlm new-model`: a model by its size or a preset, on paper or as a blank artifact."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.architecture.presets import preset
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.command_line import make_console
from jaxlm.common.next_command import next_command
from jaxlm.planning.new_model import NewModel, new_model
from jaxlm.planning.new_model_config import NewModelConfig
from jaxlm.planning.recommended import flags_of
from jaxlm.planning.size_table import size_table


def main(settings: NewModelConfig) -> None:
    """Choose a well-proportioned model of a size, or a preset, and say what it weighs and what training it needs; with
    output_dir, write it as a blank artifact."""
    if settings.table:
        print(size_table(), end="")
        return
    model = new_model(settings)
    console = make_console()
    print_model(console, settings, model)
    if settings.output_dir is not None:
        with Progress(console=console) as progress:
            task = progress.add_task("writing", total=model.parameters)
            save_blank_artifact(
                Path(settings.output_dir),
                model.config,
                seed=settings.seed,
                float_dtype=settings.float_dtype,
                advance=lambda parameters: progress.advance(task, parameters),
            )
        console.print(f"written: {settings.output_dir}")


def print_model(console: Console, settings: NewModelConfig, model: NewModel) -> None:
    """Show the model as a table, and the command that trains it."""
    config, memory = model.config, model.memory
    table = Table(title=settings.preset or f"{settings.arch}, {settings.params}")
    table.add_column("what", no_wrap=True)
    table.add_column("number", justify="right")
    table.add_column("remark")
    heads = f"{config.num_heads} heads on {config.num_kv_heads}, " if config.has_attention else ""
    head = "tied" if config.tie_word_embeddings else "untied"
    table.add_row("parameters", f"{model.parameters:,}", f"{model.ternary_parameters / model.parameters:.1%} ternary")
    table.add_row("hidden size", f"{config.hidden_size:,}", f"{heads}feed-forward {config.intermediate_size:,}")
    table.add_row("layers", f"{config.num_layers}", f"width / depth {config.hidden_size / config.num_layers:.0f}")
    table.add_row("vocabulary", f"{config.vocab_size:,}", f"{head} head")
    dtype = settings.float_dtype
    table.add_row("latent artifact", f"{model.latent_bytes:,}", f"bytes of weight files, {dtype}")
    if model.packed_bytes is not None:
        table.add_row("packed artifact", f"{model.packed_bytes:,}", f"bytes, codes in 2 bits and {dtype}")
    of_batch = f"bytes on one device, {settings.batch_size} x {model.seq_len:,} tokens, {settings.dtype}"
    table.add_row("training memory", f"{memory.total:,}", f"{of_batch}; an estimate")
    for name in ("parameters", "moments", "codes", "gradient", "activations", "workspace"):
        table.add_row(f"  {name}", f"{getattr(memory, name):,}", "")
    a_parameter = f"{model.tokens / model.parameters:.3g} a parameter; 20 or more are usual (arXiv 2203.15556)"
    table.add_row("training tokens", f"{model.tokens:,}", a_parameter)
    nearest = model.flags[1]
    table.add_row("nearest preset", nearest, f"{parameter_count(preset(nearest)):,} parameters")
    table.add_section()
    for each in model.training:
        table.add_row(each.name, f"{each.value}", each.reason)
    console.print(table)
    start = [] if settings.output_dir is None else ["--init_from", settings.output_dir]
    flags = [*model.flags, *flags_of(model.training), *start]
    console.print(f"train it with:\n  {next_command('train', *flags, '--data_dir', '...', '--output_dir', '...')}")
