# %% [markdown]
# A trained model from Python: load it, look at its logits, let it write, draw its losses.
# The cells run in an editor that knows `# %%`, or all at once: `python examples/notebook.py runs/first`

# %%
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from jaxlm.common.sampling import Sampling
from jaxlm.generate import generate
from jaxlm.load import load_model

run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/first")
model, params, tokenizer = load_model(run)
assert tokenizer is not None

# %% The likeliest next tokens
token_ids = tokenizer.encode_prompt("def get")
logits = jnp.asarray(model.apply({"params": params}, jnp.array([token_ids])))  # [1, L] -> [1, L, V]
probabilities = jax.nn.softmax(logits[0, -1])
for token in jnp.argsort(-probabilities)[:5].tolist():
    print(f"{probabilities[token]:.3f}  {tokenizer.decode([token])!r}")

# %% Text
sampling = Sampling(max_tokens=64, temperature=0.8, top_p=0.95, seed=1)
written = generate(model, params, token_ids, sampling, tokenizer.eos_id)
print(tokenizer.decode([*token_ids, *written]))

# %% The losses of the run
rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
for name in ("train/loss", "val/loss"):
    points = [(row["step"], row[name]) for row in rows if name in row]
    plt.plot(*zip(*points, strict=True), label=name)
plt.xlabel("step")
plt.ylabel("nats per token")
plt.legend()
plt.savefig(run / "notebook.png")
