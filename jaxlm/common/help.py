"""The help of a command in groups, and the right name for a flag that does not exist."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from shared_tokenizer.settings import metadata_of, resumable_fields

# Order of the groups; a group that is not named here comes after them.
GROUPS = (
    "run",
    "data",
    "tokenizer",
    "model",
    "training",
    "objective",
    "optimizer",
    "quantization",
    "evaluation",
    "checkpoints",
    "devices",
    "advanced",
)
# Columns of a terminal that every line of the help fits into.
LINE = 80
# Words of weight averaging, which no command offers.
_AVERAGING_WORDS = ("ema", "ema_decay", "use_ema", "swa", "weight_averaging", "average_weights", "averaging")
_NO_AVERAGING = (
    "averages of ternary weights' latents crowd around zero, where they round to other codes, and the model is worse "
    "than the last one; optimizer.schedule wsd or linear gives a smooth end"
)
# Words that people bring from other programs -> flags of ours, the first that a command has.
FOREIGN_WORDS = {
    "lr": ("optimizer.learning_rate",),
    "learning_rate": ("optimizer.learning_rate",),
    "max_lr": ("optimizer.learning_rate",),
    "min_lr": ("optimizer.final_fraction",),
    "warmup": ("optimizer.warmup_steps",),
    "warmup_iters": ("optimizer.warmup_steps",),
    "warmup_steps": ("optimizer.warmup_steps",),
    "weight_decay": ("optimizer.weight_decay",),
    "wd": ("optimizer.weight_decay",),
    "beta1": ("optimizer.b1",),
    "beta2": ("optimizer.b2",),
    "grad_clip": ("optimizer.grad_clip_norm",),
    "max_grad_norm": ("optimizer.grad_clip_norm",),
    "scheduler": ("optimizer.schedule",),
    "lr_scheduler_type": ("optimizer.schedule",),
    "epochs": ("num_epochs",),
    "epoch": ("num_epochs",),
    "num_train_epochs": ("num_epochs",),
    "max_iter": ("num_train_steps",),
    "max_iters": ("num_train_steps",),
    "iters": ("num_train_steps",),
    "num_iterations": ("num_train_steps",),
    "steps": ("num_train_steps",),
    "max_steps": ("num_train_steps",),
    "train_steps": ("num_train_steps",),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "device_batch_size": ("batch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "gradient_accumulation_steps": ("grad_accumulation_steps",),
    "accum": ("grad_accumulation_steps",),
    "block_size": ("seq_len", "model.max_seq_len"),
    "context_length": ("seq_len",),
    "context_size": ("seq_len",),
    "max_seq_length": ("seq_len",),
    "max_length": ("seq_len", "max_tokens"),
    "max_new_tokens": ("max_tokens",),
    "num_predict": ("max_tokens",),
    "n_predict": ("max_tokens",),
    "temp": ("temperature",),
    "n_layer": ("model.num_layers",),
    "n_layers": ("model.num_layers",),
    "num_layers": ("num_layers", "model.num_layers"),
    "depth": ("model.num_layers",),
    "n_head": ("model.num_heads",),
    "n_heads": ("model.num_heads",),
    "num_heads": ("model.num_heads",),
    "n_embd": ("model.hidden_size",),
    "d_model": ("model.hidden_size",),
    "dim": ("model.hidden_size",),
    "hidden_size": ("model.hidden_size",),
    "dropout": ("dropout",),
    "data": ("data_dir", "data", "input"),
    "dataset": ("data_dir", "data", "input"),
    "train_data": ("data_dir", "data", "input"),
    "out_dir": ("output_dir",),
    "output": ("output_dir", "destination"),
    "out": ("output_dir",),
    "o": ("output_dir",),
    "save_dir": ("output_dir",),
    "checkpoint": ("model", "init_from"),
    "ckpt": ("model", "init_from"),
    "model_path": ("model",),
    "model_name_or_path": ("model", "init_from"),
    "path": ("model", "input"),
    "eval_interval": ("eval_every_steps",),
    "eval_steps": ("eval_every_steps",),
    "eval_iters": ("eval_batches",),
    "log_interval": ("log_every_steps",),
    "logging_steps": ("log_every_steps",),
    "save_interval": ("checkpoint_every_steps",),
    "save_steps": ("checkpoint_every_steps",),
    "save_every": ("checkpoint_every_steps",),
    "resume_from_checkpoint": ("resume",),
    "gradient_checkpointing": ("remat", "grad_checkpoint"),
    "precision": ("dtype",),
    "bf16": ("dtype",),
    "fp16": ("dtype",),
    "lora_rank": ("rank",),
    "lora_r": ("rank",),
    "lora_alpha": ("scale",),
    "n_vocab": ("vocab_size",),
    "workers": ("num_workers",),
}


def arrange_help(parser: Any, settings_class: type, *, full: bool) -> None:
    """Put the flags of a parser under the headings of their settings.

    Where settings are marked as basic, the short help shows these alone and says how to see the others.
    """
    actions = {action.dest: action for group in parser._action_groups for action in group._group_actions}
    top = {field.name: metadata_of(field) for field in dataclasses.fields(settings_class)}
    nested = {name.partition(".")[0] for name in actions if "." in name}
    has_basic = any(rules.basic for rules in top.values())
    groups: dict[str, list[Any]] = {}
    # The command's own settings before those that it shares with others.
    shared = [name for name in actions if name.partition(".")[0] not in settings_class.__annotations__]
    for name in sorted(actions, key=lambda name: name in shared):
        action = actions[name]
        parent, _, child = name.partition(".")
        if name in nested:  # the flag that takes a whole group as one value
            continue
        if parent not in top:
            rules, heading = None, "options"
        elif child:
            rules, heading = _nested_metadata(settings_class, parent, child), parent
        else:
            rules = top[parent]
            heading = rules.group or ("advanced" if has_basic else "settings")
        if rules is not None and rules.more_help:
            action.help = f"{action.help} {rules.more_help}"
        if isinstance(action.metavar, str) and len(f"  --{name} {action.metavar}") > LINE:
            action.metavar = child.upper() or name.upper()  # a long list of choices: the type names them too
        if full or (name != "print_config" and (not has_basic or rules is None or rules.basic)):
            groups.setdefault(heading, []).append(action)
    order = [*(name for name in ("options", "settings", *GROUPS) if name in groups)]
    order += [name for name in groups if name not in order]
    parser._action_groups = []
    for heading in order:
        group = parser.add_argument_group(heading)
        group._group_actions.extend(groups[heading])
    epilog = []
    if "resume" in top:
        names = ", ".join(name for name in top if name in resumable_fields(settings_class) and name != "resume")
        epilog.append(f"A run that is resumed keeps its settings; these may change: {names}.")
    if has_basic and not full:
        epilog.append("These are the settings that matter first; --help_all shows all of them.")
    if epilog:
        parser.epilog = " ".join(epilog)
    # The usage line would list every flag once more.
    by_position = [name.upper() for name, action in actions.items() if name in top and not action.option_strings]
    parser.usage = " ".join(["%(prog)s", *by_position, "[--config FILE] [settings]"])


def _nested_metadata(settings_class: type, parent: str, child: str) -> Any:
    default = next(field for field in dataclasses.fields(settings_class) if field.name == parent)
    assert callable(default.default_factory)
    nested = default.default_factory()
    return next(metadata_of(field) for field in dataclasses.fields(nested) if field.name == child)


def explain_mistake(parser: Any, message: str, settings_class: type) -> str | None:
    """Return a message about a flag or key that does not exist, naming the nearest one, or about a wrong value.

    None where the parser's message is about something else.
    """
    expected = expected_values(settings_class)
    names = [action.dest for group in parser._action_groups for action in group._group_actions]
    unknown = re.search(r"(?:unrecognized arguments: --|Option '|option ')([^\s='.]*\.)?([^\s=']+)", message)
    if unknown and "optimizer.schedule" in names and unknown[2].replace("-", "_") in _AVERAGING_WORDS:
        return f"{unknown[1] or ''}{unknown[2]}: weights are not averaged: {_NO_AVERAGING}"
    if found := re.search(r"unrecognized arguments: (--)?([^\s=]+)", message):
        if not found[1]:
            return f"{found[2]!r}: found a value without a flag before it; see --help"
        hint = hint_for(found[2], names)
        return f"--{found[2]}: there is no such flag; {f'did you mean --{hint}?' if hint else 'see --help_all'}"
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        hint = hint_for(found[1], names)
        return f"{found[1]}: there is no such setting; {f'did you mean {hint}?' if hint else 'see --help_all'}"
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        name = f"{found[1]}.{found[2]}"
        hint = hint_for(name, names)
        return f"{name}: there is no such setting; {f'did you mean {hint}?' if hint else 'see --help_all'}"
    found = re.search(r'Parser key "([^"]+)":.*(?:Got|Given) value: (\S+)', message)
    if found and found[1] in expected:
        return f"{found[1]}: found {found[2]}, expected {expected[found[1]]}"
    return None


def expected_values(settings_class: type) -> dict[str, str]:
    """Return the values that every setting may have, in words, by dotted name."""
    found = {}
    for name, kind in get_type_hints(settings_class).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found |= {f"{name}.{inner}": words for inner, words in expected_values(kind).items()}
        else:
            found[name] = _in_words(kind)
    return found


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if parts := [part for part in get_args(kind) if part is not type(None)] if not isinstance(kind, type) else []:
        return " or ".join(_in_words(part) for part in parts)
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, "another value")


def hint_for(name: str, names: Iterable[str]) -> str | None:
    """Return the setting that was probably meant, None where nothing comes near."""
    names = list(names)
    word = name.lower().replace("-", "_")
    if word in names:
        return word
    for meant in FOREIGN_WORDS.get(word.rpartition(".")[2], ()):
        parent = meant.partition(".")[0]
        if meant in names or (meant.startswith("model.") and parent in names and "data_dir" in names):
            return meant
    by_last = {known.rpartition(".")[2]: known for known in names}
    near = difflib.get_close_matches(word, [*names, *by_last], n=1, cutoff=0.7)
    return by_last.get(near[0], near[0]) if near else None


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest known word, or an empty string where none is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""
