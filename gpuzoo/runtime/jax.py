"""Start JAX with the given options."""

import os
import sys

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import jobs, meeting
from gpuzoo.runtime.bootstrap import importing
from gpuzoo.runtime.environment import (
    DETERMINISTIC_FLAG,
    cpu_model,
    variables_in_force,
)
from gpuzoo.runtime.keras_state import reseed, set_keras
from gpuzoo.runtime.options import LATE, Options, Runtime
from gpuzoo.runtime.startup import (
    check_limit,
    choose_device,
    choose_precision,
    choose_threads,
    quiet_start,
    set_variables,
)

# Seconds after which processes that do not meet, or one that is silent, are given up.
MEET, SILENT = 120, 30
LEAVE = 20  # seconds in which the others must end, too


def _join(jax, devices: int) -> None:
    """Meet the other processes of a job.

    Raises:
        GpuzooError: there is no job, or not all of its processes come.
    """
    place = jobs.named(os.environ) or _detected()
    meeting.meet(place, MEET)
    given = {}
    if place.is_here:  # JAX would listen on all addresses
        given["coordinator_bind_address"] = f"127.0.0.1:{place.port}"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM and do nothing, until gpuzoo has handlers of its own.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=f"{place.address}:{place.port}",
        num_processes=place.count, process_id=place.rank,
        local_device_ids=jobs.gpus_of(place.local, devices, os.environ),
        cluster_detection_method="deactivate", initialization_timeout=MEET,
        heartbeat_timeout_seconds=SILENT, shutdown_timeout_seconds=LEAVE, **given,
    )  # fmt: skip


def _detected() -> jobs.Place:
    """Return the place in the job that JAX finds in the variables of a scheduler.

    Raises:
        GpuzooError: there is no job.
    """
    from jax._src import clusters

    try:
        # Of address, count, rank and devices none is given.
        address, count, rank, _ = (
            clusters.ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, MEET
            )
        )
    except (ValueError, RuntimeError, KeyError) as error:
        raise GpuzooError(f"distributed: the job cannot be read: {error}") from None
    if address is None:
        names = ", ".join((*jobs.ADDRESS, *jobs.RANKS[0][:2]))
        raise GpuzooError(
            f"distributed: the processes of the job do not meet: there is no {names} "
            "or other variable of a job; start all of them at once by gpuzoo launch, "
            "torchrun, srun, mpirun, or a Kubernetes job"
        )
    host, _, port = address.rpartition(":")
    return jobs.Place(host, int(port), count, rank, jobs.local_rank(os.environ))


def start_jax(options: Options, seed: int, autotune_sha256: str | None) -> Runtime:
    check_limit("JAX")
    if "jax" in sys.modules:
        from jax._src import xla_bridge

        if xla_bridge.backends_are_initialized():
            raise GpuzooError(f"too late to configure JAX; {LATE}")
    if options.xla == "off":
        raise GpuzooError("xla off was requested, but JAX compiles everything with XLA")
    reasons = {"xla": "JAX always compiles with XLA"}
    threads, reasons["threads"] = choose_threads(options)
    wanted = max(options.devices, options.model_devices)
    if not options.threads and wanted > threads:
        threads, reasons["threads"] = wanted, "one per device"
    os.environ["NPROC"] = str(threads)  # sets the size of XLA's CPU thread pool
    set_variables()
    deterministic = options.level != "fast"
    reasons["deterministic"] = f"level {options.level}"
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and DETERMINISTIC_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC_FLAG}".strip()
    with quiet_start(), importing("sklearn", "matplotlib", "IPython"):
        import jax

        if options.device == "cpu":
            jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", wanted)
    if options.distributed:
        _join(jax, options.devices)
    with quiet_start(), importing("sklearn", "matplotlib", "IPython"):
        found = jax.local_devices()[0]
        import keras
    seen = found.platform in ("gpu", "cuda")
    device, reasons["device"] = choose_device(
        options.device, seen, "JAX", "jax[cuda13]"
    )
    name = "model_devices" if options.model_devices > 1 else "devices"
    option = "--" + name.replace("_", "-")
    if device == "cpu" and wanted > threads:
        raise GpuzooError(
            f"{name}={wanted} on a CPU needs as many threads, and there are "
            f"{threads}; use --threads {wanted} (results depend on them), or "
            f"{option} {threads}"
        )
    if wanted > (count := len(jax.local_devices())):
        raise GpuzooError(
            f"{name}={wanted}, and JAX finds {count} {device.upper()}"
            f"{'s' * (count != 1)}; leave {option} out, or use {option} {count}"
        )
    precision, reasons["precision"] = options.precision, "requested"
    if precision == "auto" and device == "cpu":
        precision, why = "float32", "XLA on a CPU is faster in float32 than in bfloat16"
        reasons["precision"] = why
    elif precision == "auto":
        capability = str(getattr(found, "compute_capability", "0.0")).split(".")
        precision, reasons["precision"] = choose_precision(
            options.precision, device, tuple(map(int, capability))
        )
    set_keras(precision)
    tf32 = options.tf32 != "off"
    reasons["tf32"] = "requested" if options.tf32 != "auto" else "the default"
    if not tf32:
        jax.config.update("jax_default_matmul_precision", "highest")
    if options.model_devices > 1:
        from gpuzoo.runtime import split

        split.begin(jax.local_devices()[: options.model_devices])
    reseed(seed)
    return Runtime(
        backend=keras.config.backend(),
        device=device,
        device_name=cpu_model() if device == "cpu" else found.device_kind,
        precision=keras.config.dtype_policy().name,
        xla=True,
        deterministic=deterministic,
        level=options.level,
        threads=int(os.environ["NPROC"]),
        tf32=tf32,
        onednn=None,
        autotune_sha256=autotune_sha256,
        devices=options.devices * jax.process_count(),
        model_devices=options.model_devices,
        processes=jax.process_count(),
        variables=variables_in_force(),
        seed=seed,
        reasons=reasons,
    )
