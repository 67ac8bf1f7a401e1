"""TRL's trainer of DPO, with our own tokens and with a reference that is computed once, in one way on every machine.

TRL computes the log-probabilities of the reference model when its trainer is made, and leaves them in a temporary file of the
first process. Another process does not find that file. Here every process computes its share and receives the others'.
"""

from __future__ import annotations

from typing import Any

from accelerate.utils import gather_object
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""The columns of a row that TRL reads the reference's log-probabilities from."""


class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer. Call `compute_reference` before the training, while the model is still the reference.

    `margin_offset` is as in `querylift.trainer.training_config.PreferenceOptions`.
    """

    def __init__(self, *, margin_offset: float, **options: Any) -> None:
        super().__init__(**options)
        self.train_dataset: Any
        self.eval_dataset: Any
        self.margin_offset = margin_offset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Return `dataset` as it is: TRL asks for the reference before our head is installed."""
        return dataset

    def compute_reference(self) -> None:
        """Add the reference's log-probabilities to the rows of both datasets."""
        self.train_dataset = self._add_reference_columns(self.train_dataset)
        if self.eval_dataset is not None:
            self.eval_dataset = self._add_reference_columns(self.eval_dataset)

    def _add_reference_columns(self, dataset: Any) -> Any:
        """Return `dataset` with the reference's log-probabilities. Rows of similar length share a batch.

        The loss subtracts the reference's log-probability of the chosen passage, times beta. So an offset of the loss is
        added there, over beta.
        """
        lengths = dataset["length"]
        order = sorted(range(len(dataset)), key=lambda row: lengths[row])
        size = self.args.per_device_eval_batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        own_batches = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        log_probs = dict(gather_object([entry for rows in own_batches for entry in self._measure_rows(dataset, rows)]))
        shifts = [self.margin_offset * margin / self.beta for margin in dataset["reward_margin"]]
        columns = (
            [log_probs[row][0] + shift for row, shift in enumerate(shifts)],
            [log_probs[row][1] for row in range(len(dataset))],
        )
        for name, column in zip(REFERENCE_COLUMNS, columns, strict=True):
            dataset = dataset.add_column(name, column)
        return dataset

    def _measure_rows(self, dataset: Any, rows: list[int]) -> list[tuple[int, tuple[float, float]]]:
        """Return each row's number, with the log-probabilities of its chosen and its rejected passage."""
        batch = self._prepare_inputs(self.data_collator([dataset[row] for row in rows]))
        chosen, rejected = self.compute_ref_log_probs(self.model, batch)
        return list(zip(rows, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True))


class ServedTokensCollator(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's collator for the tokens of our own examples.

    TRL tokenizes the texts of a row too, and adds the end token to each. A passage that did not end would learn to end.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of the tokens in the columns `served_*`."""
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        rows = [row | {name: row[f"served_{name}"] for name in names} for row in examples]
        batch: dict[str, Any] = super().torch_call(rows)
        return batch
