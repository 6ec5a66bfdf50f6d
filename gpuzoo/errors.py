"""Exit codes, exceptions with a message for the user, and hints for misspelt names."""

import difflib
import enum
import errno
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """Exit codes of every command (docs/howto/scripts.md)."""

    DONE = 0
    """Done; of a comparison: identical."""
    FAILED = 1
    """A check failed: results differ, or the training diverged."""
    MISUSE = 2
    """Wrong use, bad input or an unsuitable environment; nothing was compared."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C or a signal; a run can be resumed."""


class GpuzooError(ValueError):
    """Wrong use, bad input or an environment that does not support what was requested.

    The message is one line: the argument, the rule, the value received and the remedy.
    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = ExitCode.MISUSE


def remedy_of(error: OSError) -> str:
    """Return a remedy that fits the error: free disk space or check permissions."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some disk space"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check its permissions"
    return "check the path"


class CheckFailed(GpuzooError):
    """A check found a fault: a signature, a digest or an encrypted chunk is not right.

    Commands exit with 1.
    """

    exit_code = ExitCode.FAILED


class Diverged(GpuzooError):
    """The training itself failed: the loss or a weight is no longer finite.

    Attributes:
        what: what is not finite, and where.
        at: the step (1: the first) after which it was found.
        split: what the evaluation used that gave it, test or val; train: none did.
        weights, step: the last weights that were all finite, and the steps done then;
            of an evaluation those that it used.
        state: all variables, to replay from: after `step` steps, or of an evaluation
            after `at` steps; empty if not kept.
        diagnosis: what `gpuzoo.train` found by replaying the last steps, as in
            `run.json` (gpuzoo/training/diagnosis.py); None elsewhere.
        run_dir: the run folder; None outside of `gpuzoo.train`.
    """

    exit_code = ExitCode.FAILED

    def __init__(
        self, what: str, *, step: int, weights: dict, at: int, state: dict,
        split: str = "train",
    ):  # fmt: skip
        self.what, self.at, self.step, self.weights = what, at, step, weights
        self.state, self.split = state, split
        self.diagnosis: dict | None = None
        self.run_dir: str | None = None
        super().__init__()

    def __str__(self) -> str:
        kept = f"{self.what}; the weights of step {self.step} are kept"
        if self.diagnosis:
            return f"{kept}; {self.diagnosis['text']}"
        return f"{kept}; try a smaller --learning-rate, or --precision float32"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint of an error message: the three names that are spelled most like a
    word, or the field that has another name in Keras, PyTorch or scikit-learn."""
    known, word = list(known), _word(name)
    if word in known:
        return f"nearest: {word}"
    if "learning_rate" in known and (hint := meant(word)):
        return hint
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0)
    return f"nearest: {', '.join(close)}"


def meant(word: str) -> str:
    """Return the field that corresponds to a name in another library, or an empty
    string."""
    word = _word(word)
    for fields, words in _SAME.items():
        if word in words.split():
            return f"nearest: {fields}"
    for why, words in _NONE.items():
        if word in words.split():
            return f"there is none: {why}"
    return ""


def _word(name: str) -> str:
    return str(name).lstrip("-").replace("-", "_").lower()


# Field, or fields -> names of it in other libraries.
_SAME = {
    "learning_rate": "lr base_lr init_lr max_lr learning_rate_init learningrate eta0 "
    "eta step_size",
    "weight_decay": "wd l2 l2_reg alpha_l2 decay reg weightdecay",
    "batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size "
    "mini_batch_size minibatch_size",
    "epochs": "max_epochs n_epochs num_epochs nb_epoch nb_epochs epoch "
    "num_train_epochs max_iter n_iter total_epochs",
    "min_steps": "minimum_steps",
    "epochs, batch_size": "steps_per_epoch max_steps num_steps steps train_steps "
    "total_steps limit_train_batches",
    "accumulate": "gradient_accumulation_steps accumulate_grad_batches "
    "accumulation_steps grad_accum gradient_accumulation micro_batches",
    "momentum": "mom",
    "optimizer_options": "optimizer_kwargs optimizer_args optim_args opt_kwargs rho "
    "epsilon eps amsgrad nesterov",
    "embed_loss": "metric_loss head_type triplet arcface supcon",
    "margin": "angular_margin arc_margin",
    "scale": "logit_scale arcface_scale",
    "beta_1": "beta1 betas",
    "beta_2": "beta2",
    "ema_decay": "ema use_ema ema_momentum swa model_ema polyak averaging",
    "optimizer": "optim opt solver",
    "schedule": "scheduler lr_scheduler lr_schedule sched learning_rate_schedule "
    "lr_scheduler_type annealing cosine",
    "warmup_fraction": "warmup warmup_steps warmup_epochs warmup_ratio "
    "num_warmup_steps pct_start",
    "restarts": "t_mul t_mult t_0 cycles num_cycles lr_cycle_limit",
    "plateau_patience": "lr_patience reduce_lr_patience patience_epochs",
    "plateau_factor": "factor lr_factor decay_rate reduce_lr_factor gamma",
    "label_smoothing": "smoothing smooth",
    "class_weight": "class_weights weights_of_classes scale_pos_weight pos_weight",
    "clip_norm": "global_clipnorm clipnorm gradient_clip_val max_grad_norm grad_clip "
    "clip clip_grad_norm",
    "clip_value": "clipvalue clip_grad_value",
    "sparsity": "prune pruning sparse final_sparsity target_sparsity amount",
    "augment": "augmentation augmentations transform transforms aug mixup cutmix "
    "random_crop random_flip flip data_augmentation",
    "tta": "test_time_augmentation",
    "model": "arch architecture net network backbone model_name encoder estimator",
    "model_options": "model_kwargs model_args filters units hidden_size dropout "
    "hidden_layer_sizes width depth",
    "data": "dataset ds dataset_name train_data x train_ds data_path train_dir",
    "data_dir": "root data_root dataset_dir",
    "image_size": "img_size imgsz input_size resolution size target_size resize",
    "seed": "random_state random_seed rng manual_seed torch_seed",
    "precision": "amp fp16 bf16 half mixed_precision dtype autocast fp32 use_amp "
    "float16 bfloat16 dtype_policy",
    "xla": "jit jit_compile compile torch_compile",
    "level": "deterministic determinism reproducible cudnn_deterministic strict",
    "threads": "num_threads n_jobs nthreads intra_op_threads inter_op_threads cores",
    "device": "gpu cuda accelerator cpu use_gpu no_cuda",
    "devices": "gpus num_gpus n_gpus ngpus num_devices nproc_per_node",
    "model_devices": "tensor_parallel tensor_parallel_size tp tp_size model_parallel "
    "model_parallel_size device_map",
    "distributed": "ddp data_parallel multi_gpu num_nodes nnodes",
    "out": "output_dir save_dir log_dir logdir outdir output out_dir run_dir "
    "checkpoint_dir default_root_dir save_path",
    "quiet": "verbose verbosity silent progress_bar enable_progress_bar",
    "log_every": "log_interval logging_steps log_every_n_steps print_every print_freq",
    "eval_every": "eval_interval eval_steps check_val_every_n_epoch validation_freq "
    "val_interval eval_freq",
    "keep_checkpoints": "save_total_limit max_to_keep save_top_k keep_checkpoint_max "
    "keep_last_n_checkpoints",
    "checkpoint_every": "save_every save_interval save_steps save_freq ckpt_every",
    "backend": "framework engine",
    "validation": "val_split validation_split validation_fraction val_size "
    "validation_size val_fraction",
    "early_stopping": "patience early_stop n_iter_no_change early_stopping_patience",
    "keep": "restore_best_weights save_best_only load_best_model_at_end restore_best",
    "monitor": "metric_for_best_model monitor_metric early_stopping_metric",
    "min_delta": "early_stopping_threshold tol",
    "teacher": "teacher_model",
    "distill_alpha": "alpha kd_alpha distillation_alpha",
    "temperature": "temp",
    "init": "warm_start init_from finetune_from load_from initial_weights "
    "pretrained_model_name_or_path",
    "fast_dev_run": "dry_run smoke_test",
    "track": "tensorboard wandb logger loggers tracker trackers mlflow report_to",
}
# Why there is no such field -> names of it in other libraries.
_NONE = {
    "put a test set into the data (x_test and y_test, or a folder test/)": "test_size "
    "test_split test_data",
    "put a validation set into the data (x_val and y_val, or a folder val/), or use "
    "--validation 0.1": "validation_data val_data",
    "a run always writes its curves, metrics.jsonl and checkpoints; in Python "
    "on_event=f calls a function": "callbacks callback hooks",
    "examples stay in device memory or are streamed (see stream)": "workers "
    "num_workers pin_memory prefetch persistent_workers use_multiprocessing cache",
    "examples are shuffled in every epoch, from the seed": "shuffle shuffle_buffer "
    "buffer_size",
    "the recipe's task sets the loss": "loss criterion loss_fn loss_function objective",
    "the recipe's task sets the metrics": "metrics metric scoring",
    "all examples of a class have the same weight (see class_weight)": "sample_weight "
    "sample_weights",
    "gpuzoo resume RUN continues a run": "resume resume_from_checkpoint ckpt_path "
    "initial_epoch checkpoint",
    "keras/<name> takes weights from a file as a model option": "pretrained weights",
}
