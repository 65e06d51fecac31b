"""What people type out of habit, of Lightning's Trainer above all, and what to write here instead. No torch here."""

_ITERATIONS = "The unit here is the iteration (a batch), and a run is trainer.max_iterations=... long."
_EVALUATIONS = "Give trainer.validate_every=N iterations, or null for no evaluation along the run."
_SCORED = "The validation cases are data.held_out_validation=N; evaluate_on=[] scores none after the run."
_RESUME = (
    "The same command resumes its run by itself; continue=true name=... with a larger trainer.max_iterations trains a "
    "finished one on, overwrite=true starts anew, and weights=RUN_FOLDER starts another run from its networks."
)
_BATCH = "Give batch.labeled=... and batch.unlabeled=..., patches in a batch."
_RATE = "Write optimizer.lr=..."
_TRY = "For a short try: trainer.max_iterations=2 evaluate_on=[]"
_NETWORK = "Write networks=..., or network@networks.a=... for one of a pair."
_FOLDER = "Runs go to output=FOLDER, each under its name=..."
_ROOT = "Write data.root=FOLDER"
_GPUS = "Write trainer.devices=..., on trainer.accelerator=gpu"

HABITS = {
    "lr": _RATE,
    "learning_rate": _RATE,
    "batch_size": _BATCH,
    "accumulate_grad_batches": f"{_BATCH} Every batch is a step.",
    "epochs": _ITERATIONS,
    "num_epochs": _ITERATIONS,
    "max_epochs": _ITERATIONS,
    "max_steps": _ITERATIONS,
    "min_epochs": _ITERATIONS,
    "min_steps": _ITERATIONS,
    "max_time": _ITERATIONS,
    "steps": _ITERATIONS,
    "iterations": _ITERATIONS,
    "limit_train_batches": _ITERATIONS,
    "fast_dev_run": _TRY,
    "overfit_batches": f"{_TRY}; data.labeled=1 trains on one labeled case.",
    "limit_val_batches": _SCORED,
    "limit_test_batches": _SCORED,
    "limit_predict_batches": "dualseg-predict takes the scans that its input=... names.",
    "num_sanity_val_steps": "Volumes to be evaluated are read and checked before each run.",
    "val_check_interval": _EVALUATIONS,
    "check_val_every_n_epoch": _EVALUATIONS,
    "log_every_n_steps": "Write trainer.log_every=N iterations",
    "gradient_clip_val": "Write method.gradient_clip_norm=..., of each network.",
    "gradient_clip_algorithm": "Gradients are limited by their norm: method.gradient_clip_norm=...",
    "enable_progress_bar": "Write trainer.progress_bar=true or false",
    "enable_checkpointing": "Checkpoints are always written: trainer.checkpoint_every and trainer.checkpoints_kept.",
    "enable_model_summary": "There is none; leave it out.",
    "default_root_dir": _FOLDER,
    "output_dir": _FOLDER,
    "save_dir": _FOLDER,
    "benchmark": "It is on, unless trainer.deterministic=true.",
    "resume": _RESUME,
    "ckpt_path": _RESUME,
    "resume_from_checkpoint": _RESUME,
    "pretrained": _RESUME,
    "gpus": _GPUS,
    "model": _NETWORK,
    "backbone": _NETWORK,
    "dataset": "Write data=..., such as data=folder",
    "data_dir": _ROOT,
    "data_root": _ROOT,
    "root": _ROOT,
    "workers": "Write data.num_workers=...",
    "random_seed": "Write seed=...",
    "wandb": "Write logger=wandb",
    "tensorboard": "Write logger=tensorboard",
}
"""Name of a key, alone or in a group such as `trainer` -> the advice."""


def advice_on(key: str) -> str:
    """' Write ...' for a key that other tools have and this one has not, or the empty string."""
    _, _, name = key.rpartition(".")
    return f" {HABITS[name]}" if name in HABITS and key.count(".") < 2 else ""
