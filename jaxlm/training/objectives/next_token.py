"""Cross-entropy of the next token, over the tokens of the loss mask: pre-training on text, and answers of chats."""

from jaxlm.model.language_model import LanguageModel
from jaxlm.model.loss import loss_sum
from jaxlm.ops.ternary_linear import Params
from jaxlm.training.objectives.objective import Extras, Objective, Sums
from shared_tokenizer.data.batches import Batch


def next_token(loss_chunks: int = 0, z_loss: float = 0.0) -> Objective:
    """Return the objective. `loss_chunks` cuts the sequence, `z_loss` is the weight of the z-loss, see `loss_sum`."""

    def objective(model: LanguageModel, weights: Params, batch: Batch, extras: Extras) -> Sums:
        return Sums(*loss_sum(model, weights, batch, loss_chunks, z_loss), {})

    return objective
