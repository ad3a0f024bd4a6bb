"""Evaluation and export of a trained run's best parameters."""

from pathlib import Path
from typing import Any

import jax

from xmodal_jax import export as export_lib
from xmodal_jax.checkpoint import Checkpointer
from xmodal_jax.distributed import is_main
from xmodal_jax.errors import UserError
from xmodal_jax.experiment import Experiment
from xmodal_jax.scoring import describe, evaluation_path, scoring_name
from xmodal_jax.workdir import FREE_FIELDS, claim_workdir, has_checkpoint, write_json


def best_params(experiment: Experiment, workdir: Path) -> tuple[int, Any]:
    """Step and parameters of the workdir's best checkpoint, or the weights of init_from at 0."""
    if not has_checkpoint(workdir):
        if experiment.config.init_from:
            return 0, experiment.new_state().params
        raise UserError(
            f"{workdir} has no checkpoint; train first with --mode=train, or give weights by "
            "--config.init_from"
        )
    if is_main():
        claim_workdir(workdir, experiment.config, (*FREE_FIELDS, "evaluate"))
    return restore_best(experiment, workdir)


def restore_best(experiment: Experiment, workdir: Path) -> tuple[int, Any]:
    """Step and parameters of the best checkpoint of a workdir, which has one of this very model."""
    checkpointer = Checkpointer(workdir, experiment.config.train.keep)
    found = checkpointer.restore_params(experiment.abstract, experiment.shardings)
    checkpointer.close()
    return found


def evaluate(config: Any, workdir: Path) -> dict[str, float]:
    """Prints the metrics of `config.evaluate` as a table, and writes them to the workdir."""
    experiment = Experiment.create(config)
    step, params = best_params(experiment, workdir)
    evaluators = experiment.evaluators(progress=is_main())
    found = {k: v for e in evaluators for k, v in e.run(params)}
    split, protocol = config.evaluate.split, config.evaluate.protocol
    values = {name.removeprefix(split + "/"): value for name, value in found.items()}
    if not is_main():
        return values
    kind, scoring = experiment.model.kind, scoring_name(config.evaluate)
    print(f"{split} split, protocol {protocol}, parameters of step {step}")
    print(f"model of kind {kind}, {describe(scoring)}")
    print(table(values))
    workdir.mkdir(parents=True, exist_ok=True)
    content = {"step": step, "split": split, "protocol": protocol, "kind": kind}
    content |= {"scoring": scoring, "metrics": values}
    write_json(evaluation_path(workdir, split, protocol, scoring), content)
    return values


def table(values: dict[str, float]) -> str:
    """Metrics of both directions side by side."""
    columns = ("r1", "r5", "r10", "median_rank", "mean_rank")
    lines = [f"{'':16s}" + "".join(f"{c.replace('_', ' '):>13s}" for c in columns)]
    for side, title in (("i2t", "image to text"), ("t2i", "text to image")):
        cells = "".join(f"{values[f'{side}/{c}']:13.1f}" for c in columns)
        lines.append(f"{title:16s}{cells}")
    lines.append(f"{'rsum':16s}{values['rsum']:13.1f}")
    if "pointing" in values:
        lines.append(f"words whose best region is the true one: {values['pointing']:.1f} %")
    return "\n".join(lines)


def export(config: Any, workdir: Path) -> None:
    """Writes the best parameters, the model's sizes and the tokenizer to WORKDIR/export."""
    if jax.process_count() > 1:
        raise UserError("--mode=export runs in one process; leave out --distributed")
    experiment = Experiment.create(config)
    step, params = best_params(experiment, workdir)
    directory = workdir / "export"
    export_lib.save(
        directory,
        experiment.model,
        params,
        experiment.tokenizer,
        config,
        experiment.feature_width,
        experiment.predicates,
    )
    print(f"parameters of step {step} exported to {directory}")
    print(f'load them with: xmodal_jax.export.load("{directory}")')
