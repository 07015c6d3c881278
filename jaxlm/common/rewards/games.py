"""Games of two players in text, which a model plays with itself: tic-tac-toe, and guess the rule."""

import random
import re
from dataclasses import dataclass, replace
from typing import Any, Protocol

# Starts that are held out for evaluation: those of the first numbers.
HELD_OUT = 256
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


class Game(Protocol):
    """A game of players 0 and 1. Its states are values that are never changed."""

    max_turns: int
    has_opponents: bool
    """False where both players win or lose together: one proposes, the other answers, the rule judges."""

    def start(self, number: int) -> Any:
        """Return the state that a game of this number begins with, always the same."""
        ...

    def player(self, state: Any) -> int:
        """Return whose turn it is."""
        ...

    def prompt(self, state: Any) -> str:
        """Return what the player sees."""
        ...

    def play(self, state: Any, answer: str) -> Any:
        """Return the state after an answer. One that the rules do not allow ends the game."""
        ...

    def rewards(self, state: Any) -> tuple[float, float] | None:
        """Return the reward of each player, None while the game goes on."""
        ...

    def broken_by(self, state: Any) -> int | None:
        """Return the player whose answer the rules did not allow, None where all were allowed."""
        ...

    def random_answer(self, state: Any, rng: random.Random) -> str:
        """Return an allowed answer, drawn by chance."""
        ...


@dataclass(frozen=True)
class Board:
    """A position of tic-tac-toe: nine fields of X, O or a dot; whose turn it is; who has broken the rules."""

    fields: str
    turn: int
    broken_by: int | None = None


class TicTacToe:
    """The answer is the number of a free field, 1 to 9. A win is 1, a draw 0.5; who breaks the rules has 0, others 0.5.

    Games begin with up to two marks, by chance, so that not all are the same.
    """

    max_turns = 9
    has_opponents = True

    def start(self, number: int) -> Board:
        rng, board = random.Random(number), Board("." * 9, 0)
        for _ in range(rng.randint(0, 2)):
            board = self.play(board, self.random_answer(board, rng))
        return board

    def player(self, state: Board) -> int:
        return state.turn % 2

    def prompt(self, state: Board) -> str:
        rows = "/".join(state.fields[at : at + 3] for at in (0, 3, 6))
        return f"{rows} {'XO'[self.player(state)]}:"

    def play(self, state: Board, answer: str) -> Board:
        field = answer.strip()
        if not re.fullmatch("[1-9]", field) or state.fields[int(field) - 1] != ".":
            return replace(state, broken_by=self.player(state))
        at = int(field) - 1
        return Board(state.fields[:at] + "XO"[self.player(state)] + state.fields[at + 1 :], state.turn + 1)

    def rewards(self, state: Board) -> tuple[float, float] | None:
        if state.broken_by is not None:
            return (0.0, 0.5) if state.broken_by == 0 else (0.5, 0.0)
        for line in LINES:
            if state.fields[line[0]] != "." and len({state.fields[at] for at in line}) == 1:
                return (1.0, 0.0) if state.fields[line[0]] == "X" else (0.0, 1.0)
        return None if "." in state.fields else (0.5, 0.5)

    def broken_by(self, state: Board) -> int | None:
        return state.broken_by

    def random_answer(self, state: Board, rng: random.Random) -> str:
        return str(1 + rng.choice([at for at, mark in enumerate(state.fields) if mark == "."]))


@dataclass(frozen=True)
class Rule:
    """The secret rule y = factor * x + term, the x to answer, the examples that are shown, and the outcome."""

    factor: int
    term: int
    asked: int
    shown: tuple[int, ...] = ()
    outcome: float | None = None


class GuessTheRule:
    """Player 0 is told a rule and shows two results, player 1 answers for another. Both win or lose."""

    max_turns = 2
    has_opponents = False

    def start(self, number: int) -> Rule:
        rng = random.Random(number)
        return Rule(rng.randint(1, 3), rng.randint(0, 9), rng.randint(0, 9))

    def player(self, state: Rule) -> int:
        return 1 if state.shown else 0

    def prompt(self, state: Rule) -> str:
        if not state.shown:
            return f"rule {state.factor}x+{state.term}, show two:"
        shown = ", ".join(f"{x}->{state.factor * x + state.term}" for x in state.shown)
        return f"{shown}, {state.asked}->"

    def play(self, state: Rule, answer: str) -> Rule:
        text = answer.strip()
        if state.shown:
            return replace(state, outcome=float(text == str(state.factor * state.asked + state.term)))
        if not re.fullmatch("[0-9] [0-9]", text) or str(state.asked) in text.split():
            return replace(state, outcome=0.0)
        return replace(state, shown=tuple(map(int, text.split())))

    def rewards(self, state: Rule) -> tuple[float, float] | None:
        return None if state.outcome is None else (state.outcome, state.outcome)

    def broken_by(self, state: Rule) -> int | None:
        return 0 if state.outcome is not None and not state.shown else None

    def random_answer(self, state: Rule, rng: random.Random) -> str:
        if state.shown:
            return str(rng.randint(0, 36))
        return " ".join(str(x) for x in rng.sample([x for x in range(10) if x != state.asked], 2))


def played_by_chance(game: Game, number: int) -> list[tuple[str, str]]:
    """Return the moves of a game by chance, always the same: what the player sees, and an allowed answer."""
    state, rng, moves = game.start(number), random.Random(number), list[tuple[str, str]]()
    while game.rewards(state) is None:
        moves.append((game.prompt(state), game.random_answer(state, rng)))
        state = game.play(state, moves[-1][1])
    return moves


GAMES: dict[str, Game] = {"tic_tac_toe": TicTacToe(), "guess_the_rule": GuessTheRule()}
