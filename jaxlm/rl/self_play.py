"""Rollouts of a game that the model plays with itself: every move is an answer with the reward of its player."""

import hashlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm.common.rewards.games import HELD_OUT, Game, played_by_chance
from jaxlm.ops.ternary_linear import Params
from jaxlm.rl.rollouts import Rollouts, Turn, decode_answer
from jaxlm.rl.sampler import Sample, Sampler
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Games that tell how long the prompts become.
_TRIED = 500
_LARGEST_START = 2**30


class GameSource:
    """Rollouts of a game: some starts per step, each played several times. A group are the moves of one player from one
    start."""

    steps_per_epoch = 1

    def __init__(self, name: str, game: Game, tokenizer: Tokenizer, *, starts: int, samples: int, seed: int):
        self._game, self._tokenizer, self._seed = game, tokenizer, seed
        self._starts, self._samples = starts, samples
        self._rows, self.max_turns = starts * samples, game.max_turns
        self.prompt_tokens = max(
            len(self._ids(prompt)) for number in range(_TRIED) for prompt, _ in played_by_chance(game, number)
        )
        self.fingerprint = hashlib.sha256(f"game {name}".encode()).hexdigest()

    def rollouts(self, sampler: Sampler, weights: Params, step: int, check: Callable[[], None]) -> Rollouts:
        """Play the games of a step of training, and return their moves."""
        numbers = np.random.default_rng([self._seed, step]).integers(HELD_OUT, _LARGEST_START, self._starts).tolist()
        games = [(number, sample) for number in numbers for sample in range(self._samples)]
        moves, states = self._play(sampler, weights, step, games, check)
        turns = list[Turn]()
        for index, (game_moves, state) in enumerate(zip(moves, states, strict=True)):
            rewards = self._game.rewards(state) or (0.0, 0.0)
            group = 2 * (index // self._samples)
            turns += [
                Turn(prompt, self._ids(prompt), sample, answer, rewards[player], group + player)
                for player, prompt, sample, answer in game_moves
            ]
        return Rollouts(turns, metrics={"game/turns": len(turns) / len(games)})

    def evaluate(self, sampler: Sampler, weights: Params, check: Callable[[], None]) -> dict[str, float]:
        """Return numbers of games from held-out starts: against random moves, as either player, or of both together.

        They are the mean reward, the share of games that are won, and of those in which the model kept to the rules.
        """
        games = [(number, number % 2) for number in range(min(HELD_OUT, self._rows))]
        _, states = self._play(sampler, weights, 0, games, check, random_opponents=self._game.has_opponents)
        rewards = [
            (self._game.rewards(state) or (0.0, 0.0))[side] for (_, side), state in zip(games, states, strict=True)
        ]
        kept = [self._game.broken_by(state) is None for state in states]
        return {
            "val/reward": float(np.mean(rewards)),
            "val/wins": float(np.mean(np.array(rewards) == 1)),
            "val/allowed": float(np.mean(kept)),
        }

    def show(self, sampler: Sampler, weights: Params) -> str:
        """Return the moves of some games of the model with itself."""
        games = [(number, 0) for number in range(min(4, self._rows))]
        moves, states = self._play(sampler, weights, 0, games, lambda: None)
        return "\n".join(
            "  ".join(f"{prompt}{answer}" for _, prompt, _, answer in game) + f"  (rewards {self._game.rewards(state)})"
            for game, state in zip(moves, states, strict=True)
        )

    def _play(
        self,
        sampler: Sampler,
        weights: Params,
        step: int,
        games: list[tuple[int, int]],
        check: Callable[[], None],
        *,
        random_opponents: bool = False,
    ) -> tuple[list[list[tuple[int, str, Sample, str]]], list[Any]]:
        """Play games to their ends, (start, sample or side) each: the moves of the model, and the last states.

        With `random_opponents` the model plays one side, and the other moves by chance.
        """
        states = [self._game.start(number) for number, _ in games]
        chance = [random.Random(number) for number, _ in games]
        moves: list[list[tuple[int, str, Sample, str]]] = [[] for _ in games]
        for turn in range(self.max_turns):
            live = [index for index, state in enumerate(states) if self._game.rewards(state) is None]
            ours = [i for i in live if not random_opponents or self._game.player(states[i]) == games[i][1]]
            for index in sorted(set(live) - set(ours)):
                states[index] = self._game.play(states[index], self._game.random_answer(states[index], chance[index]))
            if not ours:
                continue
            check()
            prompts = [self._game.prompt(states[index]) for index in ours]
            filled = ours + ours[:1] * (self._rows - len(ours))  # the sampler is compiled for one number of rows
            ids = [self._ids(self._game.prompt(states[index])) for index in filled]
            numbers = [(games[index][0], games[index][1] * self.max_turns + turn) for index in filled]
            samples = sampler.sample(weights, ids, step, numbers)
            for index, prompt, sample in zip(ours, prompts, samples[: len(ours)], strict=True):
                answer = decode_answer(self._tokenizer, sample.tokens)
                moves[index].append((self._game.player(states[index]), prompt, sample, answer))
                states[index] = self._game.play(states[index], answer)
        return moves, states

    def _ids(self, prompt: str) -> list[int]:
        return self._tokenizer.encode_to_continue(prompt)
