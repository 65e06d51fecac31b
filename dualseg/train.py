"""`dualseg-train`: from a configuration to a finished run folder; started again, it resumes."""

import time
from typing import Any

from dualseg.cli import run_with_hydra


def train(config: Any) -> None:
    """Train, evaluate and write the run folder of a composed configuration; a finished run is not repeated.

    Raises:
        DualsegError: whatever the user can mend; nothing half-written is left behind.
    """
    from dualseg.runs.folder import RunFolder, iteration_of
    from dualseg.runs.settings import check_data, resolve

    settings = resolve(config)
    folder = RunFolder.of(settings)
    folder.claim(settings)
    if folder.finished and not settings["overwrite"]:
        _show(folder)
        return
    check_data(settings)

    import torch
    from pytorch_lightning.loggers import WandbLogger

    from dualseg import assembly
    from dualseg.runs import checkpoints, provenance, results

    if settings["trainer"]["threads"]:
        torch.set_num_threads(settings["trainer"]["threads"])
    data = assembly.build_data(settings)
    method = assembly.build_method(settings, data.source)
    networks = dict(method.networks.items())
    latest = None if settings["overwrite"] else folder.latest_checkpoint()
    if latest is not None:
        checkpoints.check_architecture(latest, networks)
    elif settings["weights"]:
        checkpoints.load_networks(settings["weights"], networks)
    data.setup("fit")
    data.check_evaluation(settings["evaluate_on"])
    resumed_at = iteration_of(latest) if latest else 0
    if latest is not None:
        provenance.check_same_data(folder.manifest_file, data.fingerprint())
    trainer = assembly.build_trainer(settings, folder, resumed_at, provenance.resume_command())
    if trainer.is_global_zero:
        folder.open(settings)
        facts = {"dataset": settings["data"]["name"], "fingerprint": data.fingerprint(), **data.cases_used}
        provenance.start(folder.manifest_file, provenance.describe(settings["seed"], facts), resumed_at)
        print(f"Resuming {folder.path} from iteration {resumed_at}" if latest else f"Training {folder.path}")

    began = time.perf_counter()
    trainer.fit(method, data, ckpt_path=latest)
    stages = {"validation": trainer.validate, "test": trainer.test}
    cases = {"validation": data.split.validation, "test": data.split.test}
    method.results.clear()
    trainer.limit_val_batches = 1.0
    for stage in settings["evaluate_on"]:
        if cases[stage]:
            stages[stage](method, data, verbose=False)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):  # it reuses an open W&B run: the next one of `-m` would log into this one's
            logger.experiment.finish()
    if trainer.is_global_zero:
        seconds = time.perf_counter() - began
        results.write_cases(folder.cases_file, method.results, cases)
        provenance.finish(folder.manifest_file, seconds)
        folder.finish(results.metrics_of(method.results, trainer.max_steps))
        _show(folder)


def _show(folder: Any) -> None:
    from dualseg.files import read_json
    from dualseg.runs.tables import results_table

    print(f"Finished: {folder.path}\n{results_table(read_json(folder.metrics_file))}")


def main() -> None:
    """Console script."""
    run_with_hydra(train, "train")


if __name__ == "__main__":
    main()
