"""The rules of the games that a model plays with itself."""

import pytest

from jaxlm.common.rewards.games import GAMES, Board, GuessTheRule, Rule, TicTacToe, played_by_chance


@pytest.mark.parametrize("name", GAMES)
def test_games_by_chance_end_in_time_with_rewards(name):
    game = GAMES[name]
    for number in range(50):
        state, moves = game.start(number), played_by_chance(game, number)
        assert moves == played_by_chance(game, number) and len(moves) <= game.max_turns
        for prompt, answer in moves:
            assert game.rewards(state) is None and prompt == game.prompt(state)
            state = game.play(state, answer)
        rewards = game.rewards(state)
        assert rewards is not None and game.broken_by(state) is None
        assert sum(rewards) == 1 if game.has_opponents else rewards[0] == rewards[1]


@pytest.mark.parametrize(
    ("fields", "answer", "rewards"),
    [
        ("XX.OO....", " 3", (1.0, 0.0)),
        ("XX.OO....", "9", None),
        ("XX.OO....", "1", (0.0, 0.5)),
        ("XX.OO....", "0", (0.0, 0.5)),
        ("XX.OO....", "field 3", (0.0, 0.5)),
        ("XOXXOOO.X", "8", (0.5, 0.5)),
    ],
)
def test_tic_tac_toe(fields, answer, rewards):
    game, board = TicTacToe(), Board(fields, 4)
    assert game.prompt(board) == f"{fields[:3]}/{fields[3:6]}/{fields[6:]} X:"
    after = game.play(board, answer)
    assert game.rewards(after) == rewards
    assert game.broken_by(after) == (0 if rewards == (0.0, 0.5) else None)


def test_guess_the_rule():
    game, rule = GuessTheRule(), Rule(factor=2, term=3, asked=7)
    assert (game.player(rule), game.prompt(rule)) == (0, "rule 2x+3, show two:")
    shown = game.play(rule, "0 5")
    assert (game.player(shown), game.prompt(shown)) == (1, "0->3, 5->13, 7->")
    assert game.rewards(game.play(shown, "17")) == (1.0, 1.0)
    wrong = game.play(shown, "16")
    assert game.rewards(wrong) == (0.0, 0.0) and game.broken_by(wrong) is None
    for proposal in ("7 1", "12", "show"):
        after = game.play(rule, proposal)
        assert game.rewards(after) == (0.0, 0.0) and game.broken_by(after) == 0
