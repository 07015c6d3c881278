"""The command `mlxlm chat`: a conversation in the terminal."""

import contextlib
import json
from pathlib import Path

from mlxlm.chat.chat_config import ChatConfig
from mlxlm.chat.conversation import Conversation
from mlxlm.chat.terminal import Terminal
from mlxlm.load import load_model
from shared_tokenizer.manifest import refuse_inside_sealed, write_file
from shared_tokenizer.model_chat_format import choose_chat_format

HELP = """\
/system TEXT  set the system prompt; without a text remove it
/reset        forget the conversation, but not the system prompt
/save FILE    write the conversation as a line of JSON, which can be training data
/help         print this
/exit         leave, as with Ctrl-D
Ctrl-C stops an answer. A line that starts with a space before / is a message."""


def main(config: ChatConfig) -> None:
    """Talk with a model: type a message, or /help."""
    model, tokenizer = load_model(config.model, adapter_path=config.adapter_path)
    if tokenizer is None:
        raise ValueError(f"{config.model}: found no tokenizer, so there is no text to talk with")
    chat_format = choose_chat_format(
        Path(config.model), tokenizer, choice=config.chat_format, adapter_path=config.adapter_path
    )
    terminal = Terminal()
    conversation = Conversation(model, tokenizer, chat_format, config, terminal.note)
    conversation.set_system(config.system)
    chat(conversation, terminal)


def chat(conversation: Conversation, terminal: Terminal) -> None:
    """Answer messages and run commands (lines that start with /), until /exit or the end of input."""
    for line in terminal.lines():
        word, _, argument = line.partition(" ")
        if word == "/exit":
            return
        try:
            if line.startswith("/"):
                _run_command(conversation, terminal, word, argument.strip())
            elif line.strip():
                _answer(conversation, terminal, line)
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except (ValueError, OSError) as error:
            terminal.note(f"error: {error}")
        except KeyboardInterrupt:  # a second Ctrl-C, or one that came just after the answer
            terminal.end_line()


def _run_command(conversation: Conversation, terminal: Terminal, command: str, argument: str) -> None:
    match command:
        case "/system":
            conversation.set_system(argument)
            terminal.note("the system prompt is set" if argument else "there is no system prompt now")
        case "/reset":
            conversation.reset()
            terminal.note("the conversation is forgotten")
        case "/save":
            save(conversation, argument)
            terminal.note(f"saved: {argument}")
        case "/help":
            terminal.note(HELP)
        case _:
            raise ValueError(f"{command}: found no such command; /help lists them")


def _answer(conversation: Conversation, terminal: Terminal, message: str) -> None:
    with contextlib.closing(conversation.ask(message)) as pieces:
        try:
            for piece in pieces:
                terminal.write(piece)
        except KeyboardInterrupt:
            terminal.note("stopped")
    terminal.end_line()


def save(conversation: Conversation, name: str) -> None:
    """Write a conversation as one line of JSON, `{"messages": [...]}`. Raises ValueError if the file exists."""
    path = Path(name).expanduser()
    if not name or path.exists():
        raise ValueError(f"/save: found {name!r}, expected the name of a new file")
    if not conversation.turns:
        raise ValueError("/save: found no conversation yet, expected at least one answer")
    refuse_inside_sealed(path)
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    write_file(path, (json.dumps({"messages": messages}, ensure_ascii=False) + "\n").encode())
