"""Processes of a job that do not fit are refused before they begin, by their hosts."""

import contextlib
import platform
import socket
import threading

import pytest

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import jobs, meeting
from gpuzoo.runtime.jobs import Place

HERE = platform.node()
TORCH = {"MASTER_ADDR": "a", "MASTER_PORT": "7", "WORLD_SIZE": "4", "RANK": "3",
         "LOCAL_RANK": "1"}  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def meet(*places: tuple[int, int], seconds: float = 60) -> list[str]:
    """What processes of these ranks and numbers of processes hear, each a thread."""
    port, said = free_port(), [""] * len(places)

    def come(number: int, rank: int, count: int) -> None:
        try:
            meeting.meet(Place("127.0.0.1", port, count, rank), seconds)
        except GpuzooError as error:
            said[number] = str(error)

    threads = [
        threading.Thread(target=come, args=(number, *place), daemon=True)
        for number, place in enumerate(places)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * seconds)
        assert not thread.is_alive()
    return said


def test_all_meet():
    assert meet((2, 3), (0, 3), (1, 3)) == ["", "", ""]
    assert meet((0, 1)) == [""]


@pytest.mark.parametrize(
    ("places", "error"),
    [
        ([(0, 2), (1, 3)], f"process 1 on {HERE} has 3 as the number of processes, and "
                           f"process 0 on {HERE} 2 as the number"),
        ([(1, 3), (2, 3), (0, 2)], "has 3 as the number of processes, and process 0"),
        ([(0, 3), (1, 2)], "has 2 as the number of processes, and process 0"),
        ([(0, 2), (0, 2)], f"there are two with rank 0, on {HERE} and {HERE}"),
        ([(0, 3), (1, 3), (1, 3)], f"two with rank 1, on {HERE} and {HERE}"),
    ],
)  # fmt: skip
def test_those_that_do_not_fit_are_refused_in_all(places, error):
    for said in meet(*places):
        assert error in said and "start all of them at once" in said


def test_those_that_do_not_come_are_named():
    for said in meet((0, 4), (2, 4), seconds=2):
        assert f"process 1, 3 of 4 has not come, only 0 on {HERE}, 2 on {HERE}" in said
    (said,) = meet((1, 2), seconds=1)
    assert f"{HERE} does not reach process 0 at 127.0.0.1:" in said


def test_other_versions_are_named(monkeypatch):
    def version_of(package):
        return f"{package} in {threading.current_thread().name}"

    # As on two machines, each process reads what is installed there.
    monkeypatch.setattr(meeting, "version_of", version_of)
    for said in meet((0, 2), (1, 2)):
        assert f"process 1 on {HERE} has gpuzoo gpuzoo in Thread" in said


def test_whoever_else_comes_to_the_port_is_not_heard():
    port = free_port()

    def disturb() -> None:
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"rank": "1"}\n',
                      b"x" * 20_000 + b"\n"):  # fmt: skip
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port), 5) as link:
                    link.sendall(words)
        meeting.meet(Place("127.0.0.1", port, 2, 1), 60)

    other = threading.Thread(target=disturb)
    other.start()
    meeting.meet(Place("127.0.0.1", port, 2, 0), 60)
    other.join()


def test_a_port_of_another_program():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link, _ = server.accept()
                    with link:
                        link.recv(4096)
                        link.sendall(b"SSH-2.0\r\n")

        threading.Thread(target=answer, daemon=True).start()
        place = Place("127.0.0.1", server.getsockname()[1], 2, 0)
        with pytest.raises(GpuzooError, match="another program answers there"):
            meeting.meet(place, 1)


# --- variables ------------------------------------------------------------------------


def test_places_that_variables_name():
    assert jobs.named(TORCH) == Place("a", 7, 4, 3, 1)
    address = {"MASTER_ADDR": "a", "MASTER_PORT": "7"}
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    assert jobs.named({**address, **mpi}) == Place("a", 7, 2, 1, None)
    slurm = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    assert jobs.named({**address, **slurm}) == Place("a", 7, 2, 1, 0)
    for none in ({}, address, mpi, slurm):
        assert jobs.named(none) is None


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"RANK": "-1"}, "MASTER_PORT=7, WORLD_SIZE=4 and RANK=-1 must be integers"),
        ({"RANK": "4"}, "RANK=4 must be less than WORLD_SIZE=4"),
    ],
)
def test_numbers_that_are_none(changes, error):
    with pytest.raises(GpuzooError, match=error):
        jobs.named({**TORCH, **changes})


def test_each_process_of_a_machine_has_its_own_gpus():
    assert jobs.gpus_of(None, 2, {}) is None
    assert jobs.gpus_of(1, 2, {}) == [2, 3]
    assert jobs.gpus_of(1, 2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == [2, 3]
    # Slurm's --gpus-per-task shows each process its own alone.
    assert jobs.gpus_of(1, 1, {"CUDA_VISIBLE_DEVICES": "5"}) == [0]
