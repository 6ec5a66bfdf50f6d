"""The tests that take longest and have a shorter one of their kind beside them.

`pytest` leaves them out unless they are named (by a path or `-k`); `--slow K/N` runs the
K-th of N parts of them and nothing else, `--slow 1/1` all of them. `.ci/run` runs the
others and one part in five, another one for another commit.
"""

import os

import pytest

SLOW = tuple(f"tests/test_{name}" for name in (
    "audit.py::test_a_forged_run_is_caught_if_the_segment_is_drawn[edited",
    "audit.py::test_a_forged_run_is_caught_if_the_segment_is_drawn[fewer",
    "audit.py::test_a_forged_run_is_caught_if_the_segment_is_drawn[other seed",
    "audit.py::test_adversarial_networks",
    "audit.py::test_killed_and_resumed[jax",
    "audit.py::test_killed_and_resumed[tensorflow-mixed_f",
    "audit.py::test_whatever_the_state_holds[averages",
    "audit.py::test_whatever_the_state_holds[plateau]",
    "audit.py::test_whatever_the_state_holds[zeros",
    "bench.py::test_doctor_looks_at_everything",
    "bench.py::test_doctor_times_an_exchange_between_devices",
    "bench.py::test_processes_that_die_on_the_way",
    "bench.py::test_what_xla_counts",
    "cache.py::test_killed_while_the_data_are_prepared",
    "checkpoint.py::test_going_on_from_any_checkpoint_gives_the_same_bits[adam-mixed_b",
    "checkpoint.py::test_going_on_from_any_checkpoint_gives_the_same_bits[sgd-mixed_f",
    "cli.py::test_every_other_recipe_runs[a]",
    "cli.py::test_every_other_recipe_runs[c]",
    "cli.py::test_every_other_recipe_runs[d]",
    "cli.py::test_xla_and_determinism_at_once[mixed_float16",
    "compiled.py::test_strict_and_a_cache_that_cannot_be_written",
    "divergence.py::test_too_large_a_learning_rate[float32-jax",
    "divergence.py::test_too_large_a_learning_rate[mixed_float16-jax",
    "divergence.py::test_two_optimizers[jax",
    "docs.py::test_an_everyday_job[best",
    "docs.py::test_an_everyday_job[early",
    "docs.py::test_an_everyday_job[five",
    "docs.py::test_an_everyday_job[more",
    "docs.py::test_an_everyday_job[sweep",
    "docs.py::test_an_everyday_job[tensorboard",
    "docs.py::test_the_page_on_audits",
    "docs.py::test_the_page_on_detection",
    "docs.py::test_the_page_on_devices",
    "docs.py::test_the_page_on_many_runs",
    "docs.py::test_the_page_on_segmentation",
    "elastic.py::test_every_kind_of_model[gan",
    "elastic.py::test_every_kind_of_model[resnet20",
    "elastic.py::test_every_kind_of_model[vit_tiny",
    "every_model.py::test_every_model_trains_with_fit_and_with_the_loop[jax",
    "every_model.py::test_every_model_trains_with_fit_and_with_the_loop[tensorflow-mix",
    "load.py::test_predictions_are_those_of_the_training[jax",
    "model_parallel.py::test_kinds_of_models_repeat_on_two_and_four_devices",
    "notebooks.py::test_notebook_runs[boxes",
    "notebooks.py::test_notebook_runs[codes",
    "notebooks.py::test_notebook_runs[dense",
    "notebooks.py::test_notebook_runs[detection",
    "notebooks.py::test_notebook_runs[distillation",
    "notebooks.py::test_notebook_runs[forecast",
    "notebooks.py::test_notebook_runs[gan",
    "notebooks.py::test_notebook_runs[photographs",
    "notebooks.py::test_notebook_runs[repeat",
    "notebooks.py::test_notebook_runs[segmentation",
    "notebooks.py::test_notebook_runs[series",
    "notebooks.py::test_notebook_runs[sounds",
    "notebooks.py::test_notebook_runs[texts",
    "notebooks.py::test_notebook_runs[transfer",
    "on_disk.py::test_killed_and_resumed",
    "on_disk.py::test_the_same_bits_as_in_memory[jax",
    "on_disk.py::test_two_processes_have_the_bits_of_one",
    "own_models.py::test_its_networks_may_end_in_16_bits",
    "own_models.py::test_weights_that_no_initializer_of_the_layer_gives_repeat",
    "phones_home.py::test_a_verb_stays_on_this_machine[bench",
    "phones_home.py::test_a_verb_stays_on_this_machine[check]",
    "phones_home.py::test_a_verb_stays_on_this_machine[compress",
    "phones_home.py::test_a_verb_stays_on_this_machine[doctor",
    "phones_home.py::test_a_verb_stays_on_this_machine[robustness",
    "phones_home.py::test_a_verb_stays_on_this_machine[sweep",
    "phones_home.py::test_trackers_stay_on_this_machine",
    "portable.py::test_verified_and_resumed_after_a_kill",
    "privacy.py::test_no_artefact_tells_the_home_or_a_variable",
    "processes.py::test_launch_that_ends_stops_all_with_a_checkpoint[15",
    "processes.py::test_one_that_is_killed_is_started_again_with_all[0]",
    "processes.py::test_the_job_files",
    "processors.py::test_precision_and_threads_that_were_chosen_there",
    "prune.py::test_killed_resumed_and_verified[jax",
    "prune.py::test_killed_resumed_and_verified[tensorflow-mixed_f",
    "registry.py::test_a_project_has_files_with_any_names",
    "registry.py::test_a_users_own_model_object[mixed",
    "resume.py::test_killed_at_random_instants[whole0",
    "resume.py::test_killed_while_it_was_set_up[fresh",
    "resume.py::test_killed_while_it_was_set_up[given",
    "splits.py::test_killed_resumed_verified_and_loaded[tensorflow",
    "step_options.py::test_killed_resumed_and_verified[jax",
    "embed.py::test_on_the_other_backend_and_in_16_bits[jax-mixed_float16",
    "embed.py::test_on_the_other_backend_and_in_16_bits[tensorflow-mixed_float16",
    "text_runs.py::test_on_the_other_backend_and_in_16_bits[tensorflow-mixed_float16",
))  # fmt: skip
CHOICE = "GPUZOO_TEST_SLOW"  # handed to the processes of pytest-xdist


def pytest_addoption(parser):
    parser.addoption("--slow", metavar="K/N", help="run part K of N of the slow tests")


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return
    named = config.args_source is config.ArgsSource.ARGS or config.option.keyword
    part = config.option.slow
    if part:
        place, _, count = part.partition("/")
        if not (place + count).isdecimal() or not 0 < int(place) <= int(count):
            raise pytest.UsageError(f"--slow takes K/N, as 2/5: {part}")
    os.environ[CHOICE] = part or ("any" if named else "none")


def pytest_collection_modifyitems(config, items):
    choice = os.environ.get(CHOICE, "any")
    if choice == "any":
        return
    slow = [item for item in items if item.nodeid.startswith(SLOW)]
    if choice == "none":
        taken = [item for item in items if item not in slow]
    else:
        place, count = map(int, choice.split("/"))
        taken = slow[place - 1 :: count]
    config.hook.pytest_deselected(items=[one for one in items if one not in taken])
    items[:] = taken
