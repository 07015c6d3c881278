"""Any text -> token shards, training a tokenizer first if none is given."""

from jaxlm.common.command_line import run_command

if __name__ == "__main__":
    run_command("jaxlm.commands.prepare:main")
