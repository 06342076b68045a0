"""The cache holds its bound, its word about the bytes, and its readers' files, also among processes."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from rebus.errors import DataLossError, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from rebus.store.cache import BYTES_ENV, CachedObject, LocalCache, max_bytes_from_environment

CONTENTS = {f"o{number}": random.Random(number).randbytes(1000) for number in range(12)}


class Source:
    """Objects of 1,000 bytes by name, counting what is fetched."""

    def __init__(self) -> None:
        self.contents = dict(CONTENTS)
        self.fetched: list[str] = []

    def __call__(self, name: str) -> Iterable[bytes]:
        self.fetched.append(name)
        data = self.contents[name]
        yield data[:700]
        yield data[700:]


def wanted(*names: str) -> list[CachedObject]:
    return [
        CachedObject(name=name, path=f"d/{name}", size=1000, sha256=hashlib.sha256(CONTENTS[name]).hexdigest())
        for name in names
    ]


def held(root: Path) -> int:
    """Bytes of the cache's objects; one may go while they are counted."""
    total = 0
    for path in (root / "objects").iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.fixture
def source() -> Source:
    return Source()


def use(cache: LocalCache, source: Source, *names: str) -> None:
    with cache.folder(wanted(*names), source) as folder:
        assert {p.name: p.read_bytes() for p in (folder / "d").iterdir()} == {n: CONTENTS[n] for n in names}


def test_objects_are_fetched_once_and_shared_by_content(tmp_path: Path, source: Source) -> None:
    cache = LocalCache(tmp_path, 10_000)
    use(cache, source, "o1", "o2")
    use(LocalCache(tmp_path, 10_000), source, "o2", "o1")
    use(cache, source, "o1", "o3")
    assert source.fetched == ["o1", "o2", "o3"]
    assert list((tmp_path / "views").iterdir()) == []


def test_the_least_recently_read_goes_first(tmp_path: Path, source: Source) -> None:
    cache = LocalCache(tmp_path, 3000)
    for name in ("o1", "o2", "o3", "o1", "o4"):
        use(cache, source, name)
        assert held(tmp_path) <= 3000
    source.fetched.clear()
    use(cache, source, "o1", "o3", "o4")
    assert source.fetched == []
    use(cache, source, "o2")
    assert source.fetched == ["o2"]


def test_what_is_read_stays(tmp_path: Path, source: Source) -> None:
    cache = LocalCache(tmp_path, 3000)
    with cache.folder(wanted("o1", "o2"), source) as folder:
        for name in ("o3", "o4", "o5"):
            use(cache, source, name)
        assert (folder / "d" / "o1").read_bytes() == CONTENTS["o1"]
        assert held(tmp_path) == 3000
        with pytest.raises(
            ResourceExhaustedError, match=f"no room for 1000 bytes while readers use .*{BYTES_ENV}=3000"
        ):
            use(cache, source, "o6", "o7")
    use(cache, source, "o6", "o7", "o8")
    assert held(tmp_path) == 3000


def test_more_than_the_bound_is_refused_before_it_is_fetched(tmp_path: Path, source: Source) -> None:
    with pytest.raises(ResourceExhaustedError, match=f"2000 bytes are more than the cache holds: {BYTES_ENV}=1999"):
        use(LocalCache(tmp_path, 1999), source, "o1", "o2")
    assert source.fetched == []


@pytest.mark.parametrize("change", ["flip", "short", "long"])
def test_wrong_bytes_are_never_kept(tmp_path: Path, source: Source, change: str) -> None:
    good = CONTENTS["o1"]
    source.contents["o1"] = {"flip": bytes([good[0] ^ 1]) + good[1:], "short": good[:-1], "long": good + b"x"}[change]
    cache = LocalCache(tmp_path, 3000)
    with pytest.raises(DataLossError, match="o1: stored bytes were altered") as caught:
        use(cache, source, "o1")
    assert caught.value.metadata == {"path": "o1"}
    assert list((tmp_path / "objects").iterdir()) == list((tmp_path / "views").iterdir()) == []


def test_bytes_that_went_bad_in_the_cache_are_fetched_again(tmp_path: Path, source: Source) -> None:
    cache = LocalCache(tmp_path, 3000)
    use(cache, source, "o1")
    (path,) = (tmp_path / "objects").iterdir()
    path.chmod(0o644)
    path.write_bytes(b"x" * 1000)
    use(cache, source, "o1")
    assert source.fetched == ["o1", "o1"]


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(name: str) -> Iterable[bytes]:
        yield b"x"
        raise UnavailableError("gone")

    with pytest.raises(UnavailableError, match="gone"):
        use(LocalCache(tmp_path, 3000), broken, "o1")  # type: ignore[arg-type]
    assert held(tmp_path) == 0


def test_threads_share_it_within_the_bound(tmp_path: Path, source: Source) -> None:
    cache, most = LocalCache(tmp_path, 6000), 0

    def work(seed: int) -> None:
        nonlocal most
        rng = random.Random(seed)
        for _ in range(20):
            use(cache, source, rng.choice(sorted(CONTENTS)))
            most = max(most, held(tmp_path))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert 3000 < most <= 6000


READER = """
import sys, time
from pathlib import Path
from tests.libs.store.test_cache import CONTENTS, LocalCache, Source, use, wanted
cache, source = LocalCache(Path(sys.argv[1]), 6000), Source()
if sys.argv[2] == "hold":
    with cache.folder(wanted("o1", "o2", "o3"), source) as folder:
        print(folder, flush=True)
        time.sleep(600)
if sys.argv[2] == "fetch":
    def stuck(name):
        print("fetching", flush=True)
        yield b"x"
        time.sleep(600)
    use(cache, stuck, "o1")
import random
rng = random.Random(int(sys.argv[2]))
for _ in range(40):
    use(cache, source, *rng.sample(sorted(CONTENTS), 2))
"""


def _process(root: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", READER, str(root), what], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_share_it(tmp_path: Path) -> None:
    processes = [_process(tmp_path, str(seed)) for seed in range(3)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert held(tmp_path) <= 6000
    assert list((tmp_path / "views").iterdir()) == []


@pytest.mark.slow
def test_a_killed_reader_gives_back_what_it_held(tmp_path: Path, source: Source) -> None:
    cache = LocalCache(tmp_path, 3000)
    with _process(tmp_path, "hold") as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        with pytest.raises(ResourceExhaustedError):
            use(cache, source, "o4")
        assert len(list((folder / "d").iterdir())) == 3
        process.send_signal(signal.SIGKILL)
    use(cache, source, "o4")
    assert not folder.exists()


@pytest.mark.slow
def test_a_killed_fetch_takes_no_space(tmp_path: Path, source: Source) -> None:
    with _process(tmp_path, "fetch") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    use(LocalCache(tmp_path, 1000), source, "o1")
    assert held(tmp_path) == 1000


def test_a_waiting_reader_does_not_block_others(tmp_path: Path, source: Source) -> None:
    """One slow fetch holds only its own object."""
    release, begun = threading.Event(), threading.Event()

    def slow(name: str) -> Iterable[bytes]:
        begun.set()
        release.wait()
        return source(name)

    cache = LocalCache(tmp_path, 3000)
    thread = threading.Thread(target=use, args=(cache, slow, "o1"))
    thread.start()
    begun.wait()
    use(cache, source, "o2")
    assert source.fetched == ["o2"]
    release.set()
    thread.join()
    assert source.fetched == ["o2", "o1"]


def test_the_bound_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BYTES_ENV, "123")
    assert max_bytes_from_environment() == 123
    monkeypatch.setenv(BYTES_ENV, "much")
    with pytest.raises(
        InvalidArgumentError, match=f"{BYTES_ENV}: expected a number of bytes of 1 or more, found 'much'"
    ):
        max_bytes_from_environment()
