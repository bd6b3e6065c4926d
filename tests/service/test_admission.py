"""How many pictures of a model may be in flight, and when memory is short."""

import pytest

from service.admission import Admission, MemoryWatch
from service.cgroup import memory_used
from service.errors import BadImage, Overloaded


def cgroup(folder, limit: str, current: int, cache: int):
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(current))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 7\n")
    return folder


def test_no_more_pictures_than_allowed_are_in_flight():
    admission = Admission(3)
    with admission.admit(1), admission.admit(2), pytest.raises(Overloaded):
        admission.check()
    admission.check()
    assert admission.in_flight == 0


def test_a_request_that_fails_makes_room():
    admission = Admission(1)
    with pytest.raises(BadImage), admission.admit(1):
        raise BadImage("x")
    admission.check()


def test_a_request_of_many_pictures_is_served_whole_or_not_at_all():
    admission = Admission(17)
    with admission.admit(16), admission.admit(16), pytest.raises(Overloaded), admission.admit(1):
        pass


def test_each_model_has_room_of_its_own():
    full, idle = Admission(32), Admission(17)
    with full.admit(32), idle.admit(1):
        pass


@pytest.mark.parametrize(("current", "cache", "used"), [(50, 0, 0.5), (95, 30, 0.65), (95, 0, 0.95)])
def test_memory_in_use_leaves_out_what_the_kernel_can_drop(tmp_path, current, cache, used):
    assert memory_used(cgroup(tmp_path, "100", current, cache)) == pytest.approx(used)


def test_without_a_limit_memory_is_no_reason(tmp_path):
    assert memory_used(tmp_path) == 0
    assert memory_used(cgroup(tmp_path, "max", 10**12, 0)) == 0


def test_short_of_memory_nothing_new_is_taken(tmp_path):
    with pytest.raises(Overloaded, match="memory"):
        MemoryWatch(cgroup(tmp_path, "100", 91, 0)).check()
