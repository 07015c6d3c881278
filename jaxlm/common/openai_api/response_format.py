"""The field `response_format` of a request: a text, a JSON object, or JSON of a schema."""

from collections.abc import Callable

from jaxlm.common.grammar.constraint import GrammarConstraint
from jaxlm.common.grammar.grammars import BusyError, Grammars
from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.json_body import Fields, refuse
from jaxlm.common.openai_api.neutral_fields import check_neutral

NAME = "response_format"
TYPES = ("text", "json_object", "json_schema")


def read_response_format(found: object, grammars: Callable[[], Grammars]) -> GrammarConstraint | None:
    """Return the constraint of the texts, at its start, None where any text will do.

    Raises ApiError (400) that names the field, also where the schema cannot be followed.
    """
    if found is None:
        return None
    if not isinstance(found, dict):
        raise refuse(NAME, found, f"an object with a type: {', '.join(TYPES)}")
    fields = Fields(found)
    kind = fields.take("type")
    if kind not in TYPES:
        raise refuse(f"{NAME}.type", kind, f"one of {', '.join(TYPES)}")
    schema = _read_schema(fields.take("json_schema")) if kind == "json_schema" else {"type": "object"}
    check_neutral(fields.rest, f"{NAME}.")
    if kind == "text":
        return None
    return follow_grammar(lambda: grammars().json(schema, NAME), NAME)


def follow_grammar(make: Callable[[], GrammarConstraint], name: str) -> GrammarConstraint:
    """Return the constraint that `make` compiles. Raises ApiError (400 or 503) that names a field where it cannot."""
    try:
        return make()
    except ValueError as error:
        raise ApiError(400, f"{name}: {error}", param=name) from None
    except BusyError:
        message = f"{name}: found other schemas waiting to be read, the most that may wait; try again later"
        raise ApiError(503, message, param=name, code="schemas_busy", headers={"Retry-After": "2"}) from None


def _read_schema(found: object) -> dict[str, object]:
    where = f"{NAME}.json_schema"
    if not isinstance(found, dict):
        raise refuse(where, found, "an object with a schema")
    fields = Fields(found)
    for name in ("name", "description"):
        if not isinstance(value := fields.take(name), str | None):
            raise refuse(f"{where}.{name}", value, "a text")
    fields.flag("strict")  # a schema is always followed
    schema = fields.take("schema")
    if not isinstance(schema, dict):
        raise refuse(f"{where}.schema", schema, "a JSON schema, an object")
    check_neutral(fields.rest, f"{where}.")
    return schema
