"""Everything that a run of training by rewards needs, opened before it writes a file."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxlm.checkpoints.init_from import initial_config, open_initial
from jaxlm.common.architecture.config import ModelConfig, config_from_dict, fields_of, recorded_fields
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.formats.open_model import find_model_tokenizer, open_model
from jaxlm.common.rewards.games import GAMES
from jaxlm.common.rewards.open_task import open_task
from jaxlm.common.run.run_directory import RunDirectory, is_run_directory
from jaxlm.common.run.schedule_changes import log_warmup
from jaxlm.common.run.stop_request import StopRequest
from jaxlm.load import model_fingerprint
from jaxlm.model.language_model import LanguageModel
from jaxlm.rl.rl_config import RLConfig
from jaxlm.rl.rollouts import Source, TaskSource
from jaxlm.rl.sampler import Sampler
from jaxlm.rl.self_play import GameSource
from jaxlm.training.open_run import check_tokenizer, open_run, resumed_config
from jaxlm.training.resolve import activation_dtype, check_model_fields, remat_forms
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.settings import check_unchanged
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class RLInputs:
    """Everything that a run works with."""

    config: RLConfig
    model: LanguageModel
    tokenizer: Tokenizer
    source: Source
    sampler: Sampler
    initial: Artifact | None
    """The model of `init_from`, checked and not yet read; None where neither the weights nor the KL need it."""
    run: RunDirectory
    stop: StopRequest

    @property
    def length(self) -> int:
        """Tokens of a row of a batch."""
        return self.source.prompt_tokens + self.config.max_tokens - 1

    @property
    def rows(self) -> int:
        """Rows of the batch of a step, at most."""
        return self.config.samples_per_step * self.source.max_turns


def open_rl_inputs(config: RLConfig, console: Console, stack: contextlib.ExitStack) -> RLInputs:
    """Open all that a run needs, until `stack` is closed.

    Raises ValueError on settings, prompts, a verifier or a run directory that do not fit, before any file is written.
    """
    config = resumed_config(config, console.print)
    run = RunDirectory(Path(config.output_dir))
    is_resumed = config.resume and run.steps_saved > 0
    model_config = _resolve_model(config)
    tokenizer = load_tokenizer(run.tokenizer) if is_resumed else _tokenizer_of(Path(config.init_from))
    source = _open_source(config, tokenizer)
    device = jax.devices()[0]
    dtype = activation_dtype(config.dtype, device)
    # Not `none`: nothing checks that a step fits.
    forms = remat_forms("auto", model_config, dtype, device)
    remat = forms[1] if forms[0] == "none" else forms[0]
    model = LanguageModel(model_config, dtype, remat=remat)
    sampler = Sampler(
        model,
        prompt_tokens=source.prompt_tokens,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        stop_ids=tokenizer.stop_ids,
        seed=config.seed,
    )
    stop = stack.enter_context(StopRequest())
    initial = None
    fingerprints = {"data": source.fingerprint, "tokenizer": tokenizer.fingerprint}
    if not is_resumed or config.kl_weight:
        initial = open_initial(Path(config.init_from), model_config, console.print)
        fingerprints["init_from"] = model_fingerprint(config.init_from)
    log_warmup(config, console.print)

    def check(run: RunDirectory) -> None:
        check_tokenizer(run, tokenizer.fingerprint)

    stack.enter_context(open_run(config, recorded_fields(model_config), fingerprints, check, console.print))
    return RLInputs(config, model, tokenizer, source, sampler, initial, run, stop)


def _open_source(config: RLConfig, tokenizer: Tokenizer) -> Source:
    if config.task in GAMES:
        check_unchanged(config, ("prompts", "held_out_prompts", "verifier"), f"with the game {config.task}")
        return GameSource(
            config.task,
            GAMES[config.task],
            tokenizer,
            starts=config.prompts_per_step,
            samples=config.samples_per_prompt,
            seed=config.seed,
        )
    return TaskSource(
        open_task(config),
        tokenizer,
        prompts_per_step=config.prompts_per_step,
        samples_per_prompt=config.samples_per_prompt,
        eval_samples=config.eval_samples,
        pass_reward=config.pass_reward,
        seed=config.seed,
    )


def _resolve_model(config: RLConfig) -> ModelConfig:
    """Return the model of `init_from` with the replaced fields; of a resumed run the recorded one."""
    check_model_fields(config.model)
    required = {field.name for field in dataclasses.fields(ModelConfig) if field.default is dataclasses.MISSING}
    fields: dict[str, Any] = {}
    if not required <= set(config.model):  # those of a run are complete
        fields = fields_of(initial_config(Path(config.init_from)))
    return config_from_dict(fields | config.model)


def _tokenizer_of(path: Path) -> Tokenizer:
    """Return the tokenizer of a model. Raises ValueError where it has none."""
    if is_run_directory(path):
        return load_tokenizer(RunDirectory(path).tokenizer)
    tokenizer = find_model_tokenizer(path, open_model(path))
    if tokenizer is None:
        raise ValueError(f"init_from: {path}: found no tokenizer, expected one: prompts are text")
    return tokenizer
