"""The best step of a run is read from its log."""

from querylift.trainer.student.best_step import BY_LOSS, BY_NDCG, BY_REWARD, BestStep

HISTORY = [
    {"step": 0, "eval_ndcg_at_10": 0.2},
    {"step": 5, "loss": 3.0},
    {"step": 5, "eval_ndcg_at_10": 0.4},
    {"step": 5, "eval_loss": 1.0},
    {"step": 10, "eval_ndcg_at_10": 0.4},
    {"step": 10, "eval_loss": 0.5},
    {"step": 15, "eval_ndcg_at_10": 0.1},
]


def test_the_first_of_the_highest_scores_is_the_best() -> None:
    assert BY_NDCG.find_best(HISTORY) == BestStep(5, 0.4, later_evaluations=2)


def test_the_lowest_loss_is_the_best() -> None:
    assert BY_LOSS.find_best(HISTORY) == BestStep(10, 0.5, later_evaluations=0)


def test_the_highest_validation_reward_is_the_best_in_grpo_whose_loss_says_nothing() -> None:
    history = [{"step": step, "eval_loss": 0.0, "eval_reward": reward} for step, reward in ((0, 0.01), (4, 0.05))]
    assert BY_REWARD.find_best(history) == BestStep(4, 0.05, later_evaluations=0)


def test_nothing_is_the_best_of_a_log_without_evaluations() -> None:
    assert BY_LOSS.find_best([{"step": 5, "loss": 3.0}]) is None
