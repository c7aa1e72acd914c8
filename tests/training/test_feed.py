import os
import signal
import threading
import time

import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.data.arrays import Examples, batch_indices
from jaxdiff.training import feed as feed_

DATA = {"x": np.arange(20.0).reshape(10, 2), "label": np.arange(10)}


class Numbers:
    """A random-access source whose examples are their own numbers."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitems__(self, indices):
        return [{"x": np.array([i]), "label": i % 3} for i in indices]


def whole(batch):
    return batch


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    until = time.time() + 5
    while any("grain" in thread.name for thread in threading.enumerate()) and time.time() < until:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if "grain" in thread.name]


@pytest.mark.parametrize("step", [0, 63, 130])
def test_resident_and_streamed_batches_are_those_of_the_step(monkeypatch, step):
    expected = np.stack([batch_indices(10, 4, 7, step + i) for i in range(3)])
    feed = feed_.make_feed(DATA, 4, 7)
    items = feed.items(step, 3)
    np.testing.assert_array_equal(items, expected)
    batch = feed.gather(feed.resident, items[1])
    np.testing.assert_array_equal(batch["x"], DATA["x"][expected[1]])

    monkeypatch.setattr(feed_, "RESIDENT_BYTES", 0)
    streamed = feed_.make_feed(DATA, 4, 7)
    assert streamed.resident == {}
    item = {name: rows[1] for name, rows in streamed.items(step, 3).items()}
    np.testing.assert_array_equal(streamed.gather({}, item)["label"], batch["label"])
    streamed.close()


@pytest.mark.parametrize("size, batch_size, processes", [(101, 12, 3), (12, 12, 4), (7, 10, 2), (50, 6, 1)])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_epoch_shows_every_example_once_over_all_processes(size, batch_size, processes, streamed):
    data = Examples(Numbers(size), whole) if streamed else {"x": np.arange(size)[:, None]}
    steps = -(-3 * size // batch_size)
    feeds = [feed_.make_feed(data, batch_size, 5, None, i, processes) for i in range(processes)]
    parts = [feed.items(0, steps) for feed in feeds]
    parts = [part["x"][..., 0] if streamed else feeds[0].resident["x"][part, 0] for part in parts]
    for feed in feeds:
        feed.close()
    assert all(part.shape == (steps, batch_size // processes) for part in parts)
    seen = np.concatenate(parts, axis=1).reshape(-1)[: 3 * size].reshape(3, size)
    np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(size), (3, 1)))
    one = np.concatenate([batch_indices(size, batch_size, 5, step) for step in range(steps)])
    np.testing.assert_array_equal(seen.reshape(-1), one[: 3 * size])  # another cut, the same batches


def test_a_stream_goes_on_where_another_one_stopped():
    def ids(feed, step, count):
        return feed.items(step, count)["x"][..., 0]

    feed = feed_.make_feed(Examples(Numbers(30), whole), 8, 0)
    path = np.concatenate([ids(feed, step, 1) for step in range(9)])
    np.testing.assert_array_equal(ids(feed, 2, 3), path[2:5])  # a jump back
    feed.close()
    again = feed_.make_feed(Examples(Numbers(30), whole), 8, 0)
    np.testing.assert_array_equal(ids(again, 4, 5), path[4:])
    again.close()


def test_it_reads_ahead_but_not_far():
    read = []

    class Watched(Numbers):
        def __getitems__(self, indices):
            read.append(len(indices))
            return super().__getitems__(indices)

    feed = feed_.make_feed(Examples(Watched(1000), whole), 4, 0)
    feed.items(0, 1)
    until = time.time() + 5
    while len(read) < 1 + feed_.READ_AHEAD and time.time() < until:
        time.sleep(0.01)
    assert len(read) == 1 + feed_.READ_AHEAD
    feed.close()


def test_bytes_travel_and_are_scaled_by_gather():
    x = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 1), dtype=np.uint8)
    data = jd.data.Dataset(
        "a", {"x": x.astype(np.float32), "label": np.arange(9)}, {}, 9, (0.0, 255.0), 256, 100.0, 50.0
    )
    feed = feed_.make_feed(data.examples(), 3, 0)
    assert feed.resident["x"].dtype == np.uint8
    item = feed.items(4, 1)[0]
    batch = feed.gather(feed.resident, item)
    np.testing.assert_allclose(batch["x"], (x[item].astype(np.float32) - 100) / 50, rtol=1e-6)
    np.testing.assert_array_equal(batch["label"], item)
    assert set(feed_.make_feed(data.examples(label=False), 3, 0).gather(feed.resident, item)) == {"x"}


@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt()])
def test_an_error_in_a_reader_arrives_and_ends_the_threads(error):
    class Failing(Numbers):
        def __getitems__(self, indices):
            raise error

    feed = feed_.make_feed(Examples(Failing(9), whole), 3, 0)
    with pytest.raises(type(error)):
        feed.items(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["signal", "error", "return"])
def test_a_process_ends_at_once_while_threads_read(end, forked, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time, numpy as np\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from jaxdiff.data.arrays import Examples\n"
        "from jaxdiff.training.feed import make_feed\n"
        "class Slow:\n"
        "    def __len__(self): return 1000\n"
        "    def __getitems__(self, indices):\n"
        "        time.sleep(0.1)\n"
        "        return [{'x': np.array([i])} for i in indices]\n"
        "feed = make_feed(Examples(Slow(), lambda batch: batch), 4, 0)\n"
        "for step in range(1000):\n"
        "    feed.items(step, 1)\n"
        "    print(step, flush=True)\n"
        f"    if step == 3 and {end != 'signal'}:\n"
        f"        {'raise OSError(3)' if end == 'error' else 'sys.exit(7)'}\n"
    )
    process = forked([script], modules=("jaxdiff.training.feed", "grain"))
    process.until("3")
    start = time.time()
    if end == "signal":
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.time() - start < 5
    assert process.returncode == {"signal": -signal.SIGINT, "error": 1, "return": 7}[end]
    assert errors.count("Traceback") == (0 if end == "return" else 1), errors


@pytest.mark.parametrize(
    "data, message",
    [
        ({"x": np.ones((4, 2)), "label": np.ones(3)}, "one size"),
        ({"x": np.ones((0, 2))}, "one size above 0"),
        ({"x": np.array([[1.0, 2.0], [3.0, np.nan]])}, r"got nan in x at index \(1, 1\)"),
        ({"x": np.ones((3, 2)), "label": np.array([0, -1, 2])}, "from 0 on.* got int64 from -1 to 2"),
        ({"x": np.ones((3, 2)), "label": np.array([1, 2, 3])}, "network's 3 classes, got int64 from 1"),
        ({"x": np.ones((3, 2)), "label": np.ones(3)}, "integers from 0 on.* got float64"),
        ({"x": np.ones((3, 2)), "label": np.ones((3, 2), int)}, r"shape \(3,\), one an.* got shape \(3, 2\)"),
    ],
)
def test_data_that_cannot_be_trained_on(data, message):
    with pytest.raises(ValueError, match=message):
        feed_.make_feed(data, 2, 0, num_classes=3)


def test_a_stream_that_cannot_be_trained_on():
    feed = feed_.make_feed(Examples(Numbers(9), whole), 3, 0, num_classes=2)
    with pytest.raises(ValueError, match=r"2 classes, got int32 from . to 2; number [^\n]*$"):
        feed.items(0, 3)
    with pytest.raises(ValueError, match="multiple of the 4 parts of the processes, got 6; use 8"):
        feed_.make_feed(DATA, 6, 0, None, 1, 4)


@pytest.mark.slow
def test_a_run_on_a_stream_goes_on_where_it_was_interrupted(tmp_path):
    import jax.numpy as jnp

    from jaxdiff.training import Interrupted, adamw, fingerprint, fit

    x = np.random.default_rng(0).integers(0, 256, (37, 3), dtype=np.uint8)
    seen = []

    class Rows(Numbers):
        def __getitems__(self, indices):
            seen.append(indices)
            return [{"x": x[i]} for i in indices]

    def loss(params, batch, keys, strata, step):
        return jnp.mean((batch["x"] @ params["w"] - batch["x"][:, ::-1]) ** 2, axis=-1)

    def scaled(batch):
        return {"x": batch["x"].astype(jnp.float32) / 255}

    def run(out=None, data=None, **options):
        settings = {"steps": 30, "batch_size": 8, "optimizer": adamw(0.01), "progress": False}
        data = data or Examples(Rows(37), scaled)
        return fit({"w": np.eye(3, dtype=np.float32)}, loss, data, out=out, **settings | options)

    whole = fingerprint(run())
    with pytest.raises(Interrupted):
        run(tmp_path / "run", picture_every=1,
            picture=lambda step, params: step == 13 and os.kill(os.getpid(), signal.SIGINT))
    seen.clear()
    assert fingerprint(run(tmp_path / "run")) == whole
    first, before = (batch_indices(37, 8, 0, step).tolist() for step in (13, 12))
    assert first in seen and before not in seen
    assert fingerprint(run(data=Examples({"x": x}, scaled))) == whole  # out of memory, the same bits
