"""A sentencepiece model with what the files next to it change, as transformers reads them together.

The changes are written into the model: added tokens become its last pieces, and other begin, end and padding tokens its
own. So every reader of the result, sentencepiece and llama.cpp too, produces the same ids.
"""

from collections.abc import Sequence
from typing import Any

from shared_tokenizer.tokenizers.named_tokens import AddedToken, NamedTokens
from shared_tokenizer.tokenizers.sentencepiece_model import SPACE_MARKER, PieceKind, parse_model
from shared_tokenizer.tokenizers.tokenizer_files import CONFIG_FILE, MODEL_FILE

# The class of transformers that ignores the model's own normalization: it adds a space unless a text begins with one.
LLAMA_CLASS = "LlamaTokenizer"
_WAY_OUT = "save the tokenizer again with the program that made it"


def effective_model(content: bytes, named: NamedTokens) -> tuple[bytes, list[str]]:
    """Return the model file to use, and a line for each part that its files state differently.

    The content is returned as it is where nothing changes. Raises ValueError where an added token does not fit the
    pieces, and where the token that ends a text is not among them.
    """
    model, notes = parse_model(content), list(named.disagreements)
    changes = [
        _add_tokens(model, named.added_tokens),
        _set_roles(model, named),
        _set_spaces(model, named, notes),
    ]
    return (model.SerializeToString() if any(changes) else content), notes


def adds_no_second_space(named: NamedTokens) -> bool:
    """Return True if a text that begins with a space gets no other one before it."""
    return named.tokenizer_class == LLAMA_CLASS and named.adds_prefix_space is not False


def _add_tokens(model: Any, tokens: Sequence[AddedToken]) -> bool:
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    changed = False
    for token in tokens:
        where = f"{token.source}: {token.content!r}"
        if token.content not in ids:
            if token.token_id != len(model.pieces):
                found = f"{len(model.pieces)}, the next one after {MODEL_FILE}"
                if token.token_id < len(model.pieces):
                    found += f" (there it is {model.pieces[token.token_id].piece!r})"
                raise ValueError(f"{where}: found id {token.token_id}, expected {found}; {_WAY_OUT}")
            if not token.is_special and any(token.flags.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
                raise ValueError(f"{where}: found a token that depends on the text around it; use tokenizer.json")
            kind = PieceKind.CONTROL if token.is_special else PieceKind.USER_DEFINED
            model.pieces.add(piece=token.content, score=0.0, type=kind)
            ids[token.content] = token.token_id
            changed = True
        elif ids[token.content] != token.token_id:
            raise ValueError(
                f"{where}: found id {token.token_id}, but {ids[token.content]} in {MODEL_FILE}; {_WAY_OUT}"
            )
        else:
            changed |= _set_kind(model.pieces[token.token_id], token)
    return changed


def _set_kind(piece: Any, token: AddedToken) -> bool:
    """Give a piece that is listed as an added token the kind of one."""
    if token.is_special and piece.type in (PieceKind.NORMAL, PieceKind.USER_DEFINED):
        piece.type = PieceKind.CONTROL
        return True
    if not token.is_special and piece.type == PieceKind.NORMAL and SPACE_MARKER not in piece.piece:
        piece.type = PieceKind.USER_DEFINED
        return True
    return False


def _set_roles(model: Any, named: NamedTokens) -> bool:
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    named.check_named("eos", ids)
    if named.config.get("add_bos_token") is True:
        named.check_named("bos", ids)
    changed, spec = False, model.trainer_spec
    for role in ("bos", "eos", "pad"):
        token_id = named.find_named(role, ids)
        if token_id is None or model.pieces[token_id].piece == getattr(spec, f"{role}_piece"):
            continue
        piece = model.pieces[token_id]
        if piece.type == PieceKind.UNKNOWN:  # the unknown token has no second role in sentencepiece
            if role != "pad":
                raise ValueError(f"tokenizer: found {role}_token {piece.piece!r}, which is the unknown token")
            continue
        piece.type = PieceKind.CONTROL
        setattr(spec, f"{role}_piece", piece.piece)
        setattr(spec, f"{role}_id", token_id)
        changed = True
    return changed


def _set_spaces(model: Any, named: NamedTokens, notes: list[str]) -> bool:
    """Set the space before a text as transformers does: its class for Llama takes it from tokenizer_config.json."""
    normalizer, wanted = model.normalizer_spec, named.adds_prefix_space
    if named.tokenizer_class != LLAMA_CLASS:
        if wanted is not None and wanted != normalizer.add_dummy_prefix and named.tokenizer_class:
            notes.append(
                f"add_prefix_space: {wanted} in {CONFIG_FILE} has no effect with {named.tokenizer_class}, in "
                f"transformers neither; {MODEL_FILE} has {normalizer.add_dummy_prefix}"
            )
        return False
    wanted, before = wanted is not False, model.SerializeToString()
    if wanted != normalizer.add_dummy_prefix:
        notes.append(
            f"add_prefix_space: read {wanted} of {CONFIG_FILE} ({LLAMA_CLASS}), as transformers does; {MODEL_FILE} has "
            f"{normalizer.add_dummy_prefix}"
        )
        normalizer.add_dummy_prefix = wanted
    if normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap:
        notes.append(f"the normalization in {MODEL_FILE} is left out, as transformers does with {LLAMA_CLASS}")
        normalizer.remove_extra_whitespaces, normalizer.precompiled_charsmap = False, b""
    return model.SerializeToString() != before
