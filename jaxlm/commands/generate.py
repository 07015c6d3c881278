"""The command `jaxlm generate`: text from a model."""

import sys
import time
from pathlib import Path

from jaxlm.common.sampling import GenerateConfig, check_prompt, print_speed
from jaxlm.generate import generate
from jaxlm.load import load_model
from shared_tokenizer.model_chat_format import reply_stop_ids
from shared_tokenizer.tokenizers.tokenizer import TextStream


def main(config: GenerateConfig) -> None:
    """Continue a text with JAX, by a run directory or a model; the text is shown as it comes."""
    model, params, tokenizer = load_model(config.model)
    if tokenizer is None:
        raise ValueError(f"{config.model}: found no tokenizer, so there is no text to continue")
    prompt = tokenizer.encode_to_continue(config.prompt)
    check_prompt(prompt, model.config.vocab_size, model.config.max_seq_len)
    ends = reply_stop_ids(Path(config.model), tokenizer)
    stream, times = TextStream(tokenizer), []
    sys.stdout.write(config.prompt)
    for token in generate(model, params, prompt, config, ends):
        times.append(time.perf_counter())
        sys.stdout.write(stream.add(token))
        sys.stdout.flush()
    print(stream.end())
    print_speed(times)
