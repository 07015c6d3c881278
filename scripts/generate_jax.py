"""Generate text with JAX from a run directory or an artifact."""

from jaxlm.common.command_line import quiet_libraries, run_command

quiet_libraries()

from jaxlm.common.sampling import GenerateConfig  # noqa: E402
from jaxlm.generate import generate  # noqa: E402
from jaxlm.load import load_model  # noqa: E402


def main(config: GenerateConfig) -> None:
    """Generate text with JAX from a run directory or an artifact."""
    model, params, tokenizer = load_model(config.model)
    if tokenizer is None:
        raise ValueError(f"{config.model}: found no tokenizer, so there is no text to continue")
    prompt = tokenizer.encode_prompt(config.prompt)
    tokens = list(generate(model, params, prompt, config, tokenizer.eos_id))
    print(config.prompt + tokenizer.decode(tokens))


if __name__ == "__main__":
    run_command(main, GenerateConfig)
