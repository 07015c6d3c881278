"""The command `jaxlm generate`: text from a model."""

import functools
import sys
import time
from pathlib import Path

from jaxlm.common.command_line import make_console
from jaxlm.common.generation.choice import choose_answer
from jaxlm.common.generation.completions import CompletingModel, complete_prompts
from jaxlm.common.sampling import GenerateConfig, check_prompt, print_speed
from jaxlm.continue_texts import continue_texts
from jaxlm.generate import generate
from jaxlm.load import load_model, model_fingerprint
from jaxlm.ops.machine.user_cache import keep_programs
from jaxlm.ops.ternary_linear import ternarize
from shared_tokenizer.model_chat_format import reply_stop_ids
from shared_tokenizer.tokenizers.tokenizer import TextStream


def main(config: GenerateConfig) -> None:
    """Continue a text with JAX, by a run directory or a model; the text is shown as it comes. With --prompts continue
    all texts of a file."""
    keep_programs()
    model, params, tokenizer = load_model(config.model)
    if tokenizer is None:
        raise ValueError(f"{config.model}: found no tokenizer, so there is no text to continue")
    ends = reply_stop_ids(Path(config.model), tokenizer)
    if config.prompts is not None or config.chooses:
        completing = CompletingModel(
            tokenizer,
            model.config.vocab_size,
            model.config.max_seq_len,
            model_fingerprint(config.model),
            ends,
            functools.partial(continue_texts, model, ternarize(params, model.config), batch_size=config.batch_size),
        )
        if config.chooses:
            print(config.prompt + choose_answer(config, completing))
        else:
            complete_prompts(config, completing, make_console())
        return
    prompt = tokenizer.encode_to_continue(config.prompt)
    check_prompt(prompt, model.config.vocab_size, model.config.max_seq_len)
    stream, times = TextStream(tokenizer), []
    sys.stdout.write(config.prompt)
    for token in generate(model, params, prompt, config, ends):
        times.append(time.perf_counter())
        sys.stdout.write(stream.add(token))
        sys.stdout.flush()
    print(stream.end())
    print_speed(times)
