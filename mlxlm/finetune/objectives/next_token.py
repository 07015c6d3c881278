"""Cross-entropy of the next token, over the tokens of the loss mask: pre-training on text, and answers of chats."""

from mlxlm.finetune.objectives.objective import Objective, Sums
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.loss import Batch, loss_sum


def next_token(loss_chunks: int = 1, z_loss: float = 0.0) -> Objective:
    """Return the objective. `loss_chunks` cuts the tokens, `z_loss` is the weight of the z-loss, see `loss_sum`."""

    def objective(model: LanguageModel, batch: Batch) -> Sums:
        return Sums(*loss_sum(model, batch, loss_chunks, z_loss), {})

    return objective
