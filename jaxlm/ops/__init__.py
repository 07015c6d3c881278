"""The operations of the models. Importing them sets the flags of XLA, before it reads them."""

from jaxlm.ops.machine.xla_flags import set_xla_flags

set_xla_flags()
