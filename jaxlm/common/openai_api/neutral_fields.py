"""Fields of a request that ask for nothing here: what other servers serve, at a value that leaves the answer as it is.

Null, false and what is empty ask for nothing in any field; `NEUTRAL_VALUES` holds the other values, and the fields of
which false is a request. `IGNORED` fields never change the answer.
"""

from typing import Any

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.json_body import refuse

IGNORED = frozenset(
    {
        "cache_prompt",
        "chat_id",
        "keep_alive",
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
    }
)
# Of the official API first, then of other servers: vLLM, llama.cpp, and those that role-play programs call.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "add_bos_token": (True,),
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "chat_template_kwargs": ({}, {"enable_thinking": False}),
    "do_sample": (True,),
    "dry_multiplier": (0,),
    "dynatemp_exponent": (1,),
    "dynatemp_range": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "id_slot": (-1,),
    "include_reasoning": (True,),
    "length_penalty": (1,),
    "min_keep": (0,),
    "min_length": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "n_keep": (0,),
    "n_predict": (-1,),
    "n_probs": (0,),
    "no_repeat_ngram_size": (0,),
    "nsigma": (0, -1),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "prompt_logprobs": (0,),
    "reasoning_format": ("none", "auto"),
    "repeat_penalty": (1,),
    "skew": (0,),
    "skip_special_tokens": (True,),
    "smoothing_curve": (1,),
    "smoothing_factor": (0,),
    "spaces_between_special_tokens": (True,),
    "t_max_predict_ms": (0, -1),
    "tfs": (1,),
    "tfs_z": (1,),
    "thinking": ({"type": "disabled"},),
    "top_a": (0,),
    "top_n_sigma": (0, -1),
    "truncate_prompt_tokens": (-1,),
    "typical": (1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}
# Fields that tune one of the above, which is off.
_TUNING = frozenset(
    {
        "dry_allowed_length",
        "dry_base",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "mirostat_eta",
        "mirostat_tau",
        "repeat_last_n",
        "xtc_threshold",
    }
)


def check_neutral(fields: dict[str, Any], where: str = "") -> None:
    """Raise ApiError (400) on the first field that would change the answer. `where` stands before its name."""
    for name, value in fields.items():
        if name in IGNORED or name in _TUNING or _is_neutral(name, value):
            continue
        shown = f"{where}{name}"[:100]
        if name not in NEUTRAL_VALUES:
            raise ApiError(400, f"{shown}: found a field that is not supported here; leave it out", param=shown)
        raise refuse(shown, value, f"{NEUTRAL_VALUES[name][0]!r} or no such field: it is not supported here")


def _is_neutral(name: str, value: object) -> bool:
    """Return True if a field asks for nothing."""
    if value is None or value in ("", [], {}):
        return True
    neutral = NEUTRAL_VALUES.get(name, (False,))
    # False is the default of most switches, but not of those that are on.
    return any(_equal(value, allowed) for allowed in neutral) or (value is False and True not in neutral)


def _equal(value: object, neutral: object) -> bool:
    """Compare as JSON does: 1.0 is 1, but true is not."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
