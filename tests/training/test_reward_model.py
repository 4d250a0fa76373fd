"""Reward models: whole runs, resumed; their scores against transformers; their part in RL; what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from made_up_pairs import write_pairs

from jaxrl.algorithms.batch import token_counts
from jaxrl.algorithms.bradley_terry import REWARD, make_reward_objective, pair_margins
from jaxrl.config import Config, GRPOConfig, OptimizerConfig
from jaxrl.errors import UserError
from jaxrl.files import read_metrics
from jaxrl.runs.reward_model import RewardModel, load_reward_model
from jaxrl.tasks.pairs import Pair, read_pairs, split_pairs
from jaxrl.tasks.rows import DataError
from jaxrl.train import main
from jaxrl.training.learner import Learner, TrainState
from jaxrl.training.model_reward import SCORE, WINDOW, HackingWatch, judge_groups, model_metrics, rise
from jaxrl.training.optimizer import make_optimizer
from jaxrl.training.preference import PairTokens, pair_batch, pair_metrics
from models.convert import main as convert
from models.decoder import Compute
from models.heads import initial_heads
from models.reward import load_reward_head
from models.sharding import make_mesh
from rollouts.episode import Episode, Group, Problem, Reward, Submission

SMALL = [
    "--config", "configs/scramble.py", "--config.model.shape.hidden_size=32", "--config.name=scramble",
    "--config.model.shape.intermediate_size=64", "--config.model.tokenizer_size=300", "--config.sft.steps=0",
    "--config.grpo.steps=0", "--config.batch.microbatch_rows=8", "--config.batch.row_length=128",
    "--config.reward.batch_size=8", "--config.reward.optimizer.learning_rate=2e-3", "--config.reward.held_out=0.2",
]  # fmt: skip

TWENTY = ["--config.reward.steps=20", "--config.checkpoint.every=10"]


def run(folder: Path, *extra: str, settings: Sequence[str] = SMALL) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*settings, f"--config.runs_dir={folder}", *extra])
    return code, err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of runs with a reward model, its checkpoints after steps 10 and 20."""
    folder = tmp_path_factory.mktemp("reward")
    pairs = write_pairs(folder / "pairs.jsonl")
    code, error = run(
        folder, f"--config.reward.path={pairs}", "--config.reward.steps=20", "--config.checkpoint.every=10"
    )
    assert code == 0, error
    return folder


def test_a_run_learns_to_order_held_out_pairs(trained):
    records = read_metrics(trained / "scramble" / "metrics.jsonl")
    first, last = (r for r in records if r["stage"] == "evaluate")
    assert last["held_out/accuracy@pairs"] > 0.9 > first["held_out/accuracy@pairs"] or first["held_out/loss"] > 0.6
    assert last["held_out/margin"] > 0.5 and last["held_out/questions"] == 6 and last["held_out/n"] == 18
    steps = [r for r in records if r["stage"] == "reward"]
    assert len(steps) == 20 and steps[-1]["pairs"] == 8 and steps[-1]["flops"] > 0 and "entropy" not in steps[-1]
    assert "accuracy@pairs" in (trained / "scramble" / "report.html").read_text()


def test_a_resumed_run_gives_the_same_bits(trained):
    whole, log = load_reward_head(trained / "scramble"), read_metrics(trained / "scramble" / "metrics.jsonl")
    shutil.rmtree(trained / "scramble" / "checkpoints" / "20")
    code, error = run(trained, f"--config.reward.path={trained / 'pairs.jsonl'}", *TWENTY)
    assert code == 0, error
    np.testing.assert_array_equal(load_reward_head(trained / "scramble"), whole)
    assert [r.get("loss") for r in read_metrics(trained / "scramble" / "metrics.jsonl")] == [r.get("loss") for r in log]


def scorer(run: Path, folder: Path) -> RewardModel:
    config = Config()
    config.reward.model = str(run)
    return load_reward_model(config, Compute(mesh=make_mesh(devices=jax.devices()[:1])), folder)


def agree(run_folder: Path, folder: Path) -> None:
    """transformers' classifier from the exported run gives our scores, with padding."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert convert(["export", str(run_folder), str(folder / "hf")]) == 0
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "hf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    rng = np.random.default_rng(0)
    sequences = [rng.integers(5, 290, n).astype(np.int32) for n in (3, 64, 65, 17)]
    ours = scorer(run_folder, folder).score_tokens(sequences)
    with torch.no_grad():
        padded = np.full((4, 65), tokenizer.pad_token_id)
        for row, tokens in enumerate(sequences):
            padded[row, : len(tokens)] = tokens
        found = theirs(torch.tensor(padded), attention_mask=torch.tensor(padded != tokenizer.pad_token_id)).logits
    np.testing.assert_allclose(ours, found[:, 0].numpy(), atol=1e-4)
    assert np.ptp(ours) > 1e-3


def test_transformers_gives_the_same_scores(trained, tmp_path):
    agree(trained / "scramble", tmp_path)


def test_transformers_gives_the_same_scores_of_a_llama(trained, tmp_path):
    from families import LLAMA3_ROPE, SHAPE, randomized
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SHAPE | {"vocab_size": 300, "rope_parameters": LLAMA3_ROPE}
    randomized(lambda: LlamaForCausalLM(LlamaConfig(**shape))).save_pretrained(tmp_path / "llama")
    for file in (trained / "scramble" / "model" / "tokenizer").iterdir():
        shutil.copy(file, tmp_path / "llama")
    arguments = [a for a in SMALL if "model." not in a]
    more = [f"--config.reward.path={trained / 'pairs.jsonl'}", "--config.reward.steps=2"]
    code, error = run(tmp_path, f"--config.model.path={tmp_path / 'llama'}", *more, settings=arguments)
    assert code == 0, error
    agree(tmp_path / "scramble", tmp_path)


def test_padding_and_packing_do_not_change_a_score(trained, tmp_path):
    """Scores of rows of one answer and any padding, and of packed pairs in the learner's rows."""
    model = scorer(trained / "scramble", tmp_path)
    rng = np.random.default_rng(1)
    sequences = [rng.integers(5, 290, n).astype(np.int32) for n in (9, 30, 12, 21, 7, 40)]
    alone = np.array([model.score_tokens([s])[0] for s in sequences])
    np.testing.assert_allclose(model.score_tokens(sequences), alone, atol=1e-5)
    pairs = [PairTokens(Pair("", "q", (), str(i), ""), *sequences[i : i + 2]) for i in (0, 2, 4)]
    learner = Learner(
        model.graphdef, make_reward_objective(), make_optimizer(OptimizerConfig(), 1)[0], microbatch_rows=2
    )
    heads = initial_heads((REWARD,), model.params, jax.random.key(0))
    heads["reward"]["weight"] = heads["reward"]["weight"].replace(model.weight)
    state = TrainState(model.params, None, heads)
    for row_length in (64, 128):
        batch, places = pair_batch(pairs, "pair", row_length, 2)
        margins = pair_margins(learner.outputs(state, batch).heads[REWARD.name], batch)
        np.testing.assert_allclose(np.asarray(margins)[tuple(places.T)], alone[::2] - alone[1::2], atol=1e-5)
    assert token_counts(batch)[0] == sum(map(len, sequences))


def test_pair_metrics():
    metrics = pair_metrics(["a", "a", "b"], np.array([1.0, 0.0, -2.0]), bootstrap=200)
    assert metrics["held_out/accuracy@pairs"] == pytest.approx(0.5)
    assert metrics["held_out/loss"] == pytest.approx(np.mean(np.log1p(np.exp([-1.0, 0.0, 2.0]))))
    assert metrics["held_out/accuracy@pairs/low"] == 0.0 and metrics["held_out/accuracy@pairs/high"] == 0.75


def test_all_pairs_of_a_question_are_on_one_side(tmp_path):
    pairs = read_pairs(str(write_pairs(tmp_path / "pairs.jsonl")))
    train, held_out = split_pairs(pairs, 0.1, seed=3)
    assert len(held_out) == 9 and len(train) == 81
    assert not {p.question for p in train} & {p.question for p in held_out}


def test_lines_that_are_no_pairs_are_named(tmp_path):
    good = json.loads(write_pairs(tmp_path / "pairs.jsonl").read_text().splitlines()[1])
    for change, message in (
        ({"chosen": good["rejected"]}, "chosen and rejected are the same text"),
        ({"messages": []}, "messages must be those of a prompt"),
        ({"rejected_rate": 1.0}, "chosen_rate = 1 must be above rejected_rate = 1"),
        ({"rejected": 3}, "rejected must be a text"),
    ):
        path = tmp_path / "bad.jsonl"
        path.write_text(json.dumps(good | change) + "\n")
        with pytest.raises(DataError, match=f"bad.jsonl:1: {message}"):
            read_pairs(str(path))


class Fixed:
    """A reward model with given scores."""

    def __init__(self, scores):
        self.scores, self.flops = scores, 0.0

    def score_groups(self, groups, rollout):
        self.flops += 7.0
        return self.scores


def group(solved, status="finished") -> Group:
    problem = Problem("p", ({"role": "user", "content": "?"},))
    episodes = [
        Episode(problem, np.zeros(1, np.int32), [], Reward(float(s), s), status, "x", submission=Submission("x"))
        for s in solved
    ]
    return Group(problem, episodes)


@pytest.mark.parametrize("kind", ["model", "both"])
def test_the_models_part_is_normalized_within_the_group(kind):
    config = Config(grpo=GRPOConfig(steps=1, reward=kind))
    config.reward.weight = 0.5
    scores = np.array([3.0, 1.0, 1.0, -1.0])
    groups, shifted = [group([True, True, False, False])], [group([True, True, False, False])]
    assert judge_groups(Fixed([scores.tolist()]), groups, config) == 7.0
    judge_groups(Fixed([(scores + 100).tolist()]), shifted, config)
    z = (scores - scores.mean()) / (scores.std() + 1e-4)
    expected = z if kind == "model" else np.array([1, 1, 0, 0]) + 0.5 * z
    np.testing.assert_allclose([e.reward.value for e in groups[0].episodes], expected)
    np.testing.assert_allclose(shifted[0].rewards, groups[0].rewards, atol=1e-6)
    assert [e.reward.solved for e in groups[0].episodes] == [True, True, False, False]
    found = model_metrics(groups)
    assert found["reward_model/score"] == 1.0 and found["reward_model/task"] == 0.5
    assert found["reward_model/accuracy"] == (1 + 1 + 0.5 + 1) / 4
    assert groups[0].episodes[0].reward.parts[SCORE] == 3.0 and model_metrics([group([True])]) == {}


def test_the_alarm_needs_a_rising_score_and_a_falling_pass_rate():
    def alarms(score_slope: float, solved_slope: float) -> list[float]:
        watch, rng = HackingWatch(), np.random.default_rng(0)
        found = []
        for step in range(3 * WINDOW):
            noise = 0.02 * rng.normal(size=2)
            metrics = {
                "reward_model/score": score_slope * step + noise[0],
                "solved": 0.5 + solved_slope * step + noise[1],
            }
            metrics |= watch.look(metrics)
            watch.warning(metrics)
            found.append(metrics["reward_model/alarm"])
        assert watch.warned == any(found)
        return found

    hacked = alarms(0.05, -0.01)
    assert hacked[-1] == 1 and not any(hacked[: 2 * WINDOW - 1])
    assert not any(alarms(0.05, 0.01)) and not any(alarms(-0.05, -0.01)) and not any(alarms(0.0, 0.0))
    values = np.random.default_rng(2).normal(size=20)
    from scipy.stats import ttest_ind

    assert rise(values.tolist(), 10) == pytest.approx(ttest_ind(values[10:], values[:10], equal_var=False).statistic)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--config.reward.steps=5"], "reward.path = '' with reward.steps = 5: both are needed"),
        (["--config.reward.steps=5", "--config.reward.path=x", "--config.sft.steps=3"], "sft.steps = 3 must be 0"),
        (["--config.grpo.steps=5", "--config.grpo.reward=model"], "grpo.reward = 'model' needs reward.model"),
        (["--config.grpo.steps=5", "--config.reward.model=runs/x"], "reward.model = 'runs/x' does nothing here"),
        (["--config.grpo.steps=5", "--config.reward.weight=2"], "reward.weight = 2 needs grpo.reward = 'both'"),
        (["--config.sft.steps=1", "--config.evaluation.best_of=reward"], "best_of = 'reward' needs reward.model"),
        (["--config.grpo.steps=5", "--config.grpo.reward=both", "--config.reward.model=x", "--config.grpo.loss=ppo"],
         "grpo.reward = 'both' needs grpo.loss.name = 'policy_gradient', is 'ppo'"),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_are_refused(tmp_path, settings, message):
    code, error = run(tmp_path, *settings)
    assert code == 1 and message in error and error.count("\n") == 1


def test_a_folder_without_a_reward_model_is_refused(tmp_path):
    config = Config()
    config.reward.model = str(tmp_path)
    with pytest.raises(UserError, match=r"reward\.model = .*holds no reward model; give the folder of a run"):
        load_reward_model(config, Compute(), tmp_path)


def test_lora_trains_the_adapters_and_the_head(trained, tmp_path):
    extra = [f"--config.reward.path={trained / 'pairs.jsonl'}", "--config.reward.steps=2", "--config.model.lora.rank=2",
             "--config.reward.average=question"]  # fmt: skip
    code, error = run(tmp_path, *extra)
    assert code == 0, error
    model = scorer(tmp_path / "scramble", tmp_path)
    assert np.isfinite(model.score_tokens([np.arange(5, 20, dtype=np.int32)])).all()
