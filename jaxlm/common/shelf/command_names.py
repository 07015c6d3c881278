"""The commands of the shelf by name, without what they import."""

COMMANDS = {
    "list": ("jaxlm.common.shelf.command:list_models", "all models of the shelf, and the trash"),
    "show": ("jaxlm.common.shelf.command:show", "all that is known of a model"),
    "add": ("jaxlm.common.shelf.command:add", "a run's artifact or any other model -> the next version of a name"),
    "verify": ("jaxlm.common.shelf.command:verify", "compare models with what was added, by ranges of bytes"),
    "rename": ("jaxlm.common.shelf.command:rename", "give a name, or one version, another name"),
    "remove": ("jaxlm.common.shelf.command:remove", "move a version into the trash"),
    "restore": ("jaxlm.common.shelf.command:restore", "bring a version back from the trash"),
    "pull": ("jaxlm.common.shelf.command:pull_model", "a model of the Hugging Face hub -> the shelf"),
    "push": ("jaxlm.common.shelf.command:push_model", "a model of the shelf -> the Hugging Face hub"),
    "card": ("jaxlm.common.shelf.command:card", "print the card of a model: README.md of the hub's form"),
}
# Their settings without a default are given by position.
POSITIONAL = ("add", "rename", "pull", "push")
