"""Evaluation and export of a trained run's best parameters."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from xmodal_jax import export as export_lib
from xmodal_jax.checkpoint import Checkpointer
from xmodal_jax.distributed import is_main
from xmodal_jax.errors import UserError
from xmodal_jax.evaluators.grounding import GroundingEvaluator
from xmodal_jax.evaluators.outcomes import Outcome, means
from xmodal_jax.evaluators.pointing import PointingEvaluator
from xmodal_jax.evaluators.probes import ProbeEvaluator
from xmodal_jax.evaluators.retrieval import RetrievalEvaluator
from xmodal_jax.experiment import Experiment
from xmodal_jax.metrics.parts import SIDES, metrics_of_parts
from xmodal_jax.metrics.ranking import RECALL_AT
from xmodal_jax.report.files import PAGE
from xmodal_jax.report.terminal import render
from xmodal_jax.run_report import collection_of, run_report
from xmodal_jax.scoring import describe, evaluation_path, report_path, scoring_name
from xmodal_jax.workdir import FREE_FIELDS, claim_workdir, has_checkpoint, write_json

_RECALLS = tuple(f"r{k}" for k in RECALL_AT)
_RANKS = ("median_rank", "mean_rank")


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
    """Prints the metrics of `config.evaluate` as a table, and writes its report to the workdir."""
    section = config.evaluate
    split, protocol = section.split, section.protocol
    experiment = Experiment.create(config)
    if section.alignments and jax.process_count() > 1:
        raise UserError("evaluate.alignments=True needs a single process; leave out --distributed")
    if section.images and not Path(section.images).is_dir():
        raise UserError(f"evaluate.images={section.images} is no directory of image files")
    step, params = best_params(experiment, workdir)
    retrieval, *others = experiment.evaluators(progress=is_main())
    assert isinstance(retrieval, RetrievalEvaluator)
    parts = retrieval.parts(params)
    kind, scoring = experiment.model.kind, scoring_name(section)
    name = "/".join(workdir.absolute().parts[-2:])
    about = {"name": f"{name}, {split} split", "workdir": str(workdir), "step": step}
    about |= {"model": config.model.name, "kind": kind, "scoring": describe(scoring)}
    about |= {"data": config.data.name, "split": split, "protocol": protocol}
    directory = report_path(workdir, split, protocol, scoring)

    def outcomes() -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        for other in others:
            assert isinstance(other, PointingEvaluator | GroundingEvaluator | ProbeEvaluator)
            found |= other.outcomes(params)
        return found

    if not is_main():
        # In the order in which the main process takes part.
        fine = dict(means(outcomes()))
        return metrics_of_parts(parts) | fine
    collection = collection_of(experiment.dataset, split)
    align = partial(experiment.aligner(), params) if section.alignments else None
    align_pairs = None
    if kind != "vector" and jax.process_count() == 1:
        align_pairs = partial(experiment.pair_aligner(), params)
    report = run_report(section, collection, parts, about, directory, outcomes, align, align_pairs)
    values = short_metrics(report.metrics())
    values |= {name: figure.value for name, figure in report.fine.items()}
    print(f"{split} split, protocol {protocol}, parameters of step {step}")
    print(f"model of kind {kind}, {describe(scoring)}")
    print(render(report))
    content = {"step": step, "split": split, "protocol": protocol, "kind": kind}
    content |= {"scoring": scoring, "metrics": values}
    write_json(evaluation_path(workdir, split, protocol, scoring), content)
    print(f"written to {directory}; open {directory / PAGE}")
    return values


def short_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of a report that training logs too; the others are in the report."""
    names = [f"{side}/{name}" for side in SIDES for name in (*_RECALLS, *_RANKS)]
    return {name: metrics[name] for name in (*names, "rsum")}


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
