"""A corpus that is interrupted, changed, refused or shared: nothing is lost, mixed, or paid for twice."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import client_for
from corpus_helpers import DIMENSIONS, expected_vector, read_rejects, read_vectors, write_json_lines, write_lines

from dashscope_embeddings import (
    AuthenticationError,
    BadReply,
    BadRequestError,
    ConnectionFailed,
    EmbeddingClient,
    InvalidInput,
    corpus,
)
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings.corpus.checkpoint.checksums import text_hash
from dashscope_embeddings.corpus.checkpoint.database import Database
from dashscope_embeddings.corpus.checkpoint.rows import InputText, PackedVectors, PaidReply
from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = [f"text number {number}" for number in range(95)]


def embed(emulator: Emulator, source: Any, output: Path, *, settings: Any = None, **how: Any) -> corpus.Summary:
    client = client_for(emulator, **{"dimensions": DIMENSIONS, **(settings or {})})
    return corpus.embed_corpus(source, output, client=client, **how)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.txt", TEXTS)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


# --- what is paid for --------------------------------------------------------------------------------------


def test_equal_texts_are_paid_once_and_each_gets_its_row(tmp_path: Path, output: Path, emulator: Emulator) -> None:
    texts = [TEXTS[number % 7] for number in range(60)]
    summary = embed(emulator, write_lines(tmp_path / "in.txt", texts), output)
    assert emulator.billed_texts == summary.embedded == 7
    assert summary.texts == 60
    assert [row.dense for row in read_vectors(output)] == [expected_vector(emulator, text) for text in texts]


def test_the_same_call_again_asks_nothing(source: Path, output: Path, emulator: Emulator) -> None:
    first = embed(emulator, source, output)
    content = output.read_bytes()
    again = embed(emulator, source, output)
    assert output.read_bytes() == content
    assert emulator.billed_texts == len(TEXTS)
    assert (first.embedded, again.embedded, again.usage.requests) == (len(TEXTS), 0, 0)
    assert again.spent == first.usage
    assert (again.spent.texts, again.spent.tokens) == (emulator.billed_texts, emulator.billed_tokens)


def test_changed_texts_alone_are_asked_and_removed_ones_disappear(
    tmp_path: Path, output: Path, emulator: Emulator
) -> None:
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    embed(emulator, write_json_lines(tmp_path / "in.jsonl", rows), output, id_field="id")
    changed = [{**row, "text": "new"} if row["id"] == 40 else row for row in reversed(rows) if row["id"] != 3]
    summary = embed(emulator, write_json_lines(tmp_path / "in.jsonl", changed), output, id_field="id")
    assert summary.embedded == 1
    assert emulator.billed_texts == len(TEXTS) + 1
    assert [(row.id, row.dense) for row in read_vectors(output)] == [
        (row["id"], expected_vector(emulator, str(row["text"]))) for row in changed
    ]
    embed(emulator, write_json_lines(tmp_path / "in.jsonl", rows), output, id_field="id")
    assert emulator.billed_texts == len(TEXTS) + 1


@pytest.mark.parametrize("kind", ["dense", "dense&sparse"])
def test_long_texts_in_pieces_are_kept_whole(kind: Any, tmp_path: Path, output: Path) -> None:
    emulator = Emulator(tokens_per_row=50)
    texts = [f"{TEXTS[number]}. " * (30 if number % 4 == 0 else 1) for number in range(24)]
    settings = {"long_text": "average"}
    # The service says how long a text may be only when one is too long: how texts are cut depends on that.
    client_for(emulator, long_text="truncate").embed("word " * 300)
    asking = client_for(emulator, dimensions=DIMENSIONS, long_text="average")
    limits = shared_limits(asking.settings.address.host, asking.settings.model)
    texts.insert(1, next(limits.fit_rows(texts[0], "average")))  # one vector for a text and for the piece of another
    embed(emulator, write_lines(tmp_path / "in.txt", texts), output, settings=settings, kind=kind)
    assert emulator.billed_texts > len(texts) + 1
    alone = asking.embed(texts)
    for row, vector in zip(read_vectors(output), alone.dense, strict=True):
        assert row.dense == pytest.approx(vector, abs=1e-6)
        assert (row.sparse is None) == (kind == "dense")
    billed = emulator.billed_texts
    assert embed(emulator, tmp_path / "in.txt", output, settings=settings, kind=kind).embedded == 0
    assert emulator.billed_texts == billed


# --- what does not mix -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "differing",
    [
        ({"model": "text-embedding-v3"}, {}, "model was 'text-embedding-v4' and is now 'text-embedding-v3'"),
        ({"dimensions": 128}, {}, "dimension was 64 and is now 128"),
        ({}, {"text_type": "document"}, "role was 'query' and is now 'document'"),
        ({"instruct": "Find it"}, {}, "instruct was None and is now 'Find it'"),
        ({}, {"kind": "sparse"}, "kind was 'dense' and is now 'sparse'"),
        ({"base_url": "http://127.0.0.1:9"}, {}, "holds vectors of cn-beijing, and this run would use 127.0.0.1:9"),
    ],
)
def test_vectors_of_another_kind_are_refused_and_the_difference_named(
    differing: tuple[dict[str, Any], dict[str, Any], str], tmp_path: Path, output: Path, emulator: Emulator
) -> None:
    settings, how, said = differing
    source = write_lines(tmp_path / "in.txt", TEXTS[:12])
    embed(emulator, source, output, text_type="query")
    content, asked = output.read_bytes(), emulator.requests
    with pytest.raises(InvalidInput) as caught:
        embed(emulator, source, output, settings=settings, **{"text_type": "query", **how})
    assert said in str(caught.value)
    assert str(corpus.ledger_beside(output)) in str(caught.value)
    assert (output.read_bytes(), emulator.requests) == (content, asked)
    assert embed(emulator, source, output, text_type="query").embedded == 0


def test_the_models_own_dimension_is_the_same_by_name(source: Path, output: Path, emulator: Emulator) -> None:
    embed(emulator, source, output, settings={"dimensions": None})
    assert embed(emulator, source, output, settings={"dimensions": 1024}).embedded == 0


def test_long_texts_may_be_shortened_later_but_not_in_two_ways(source: Path, output: Path, emulator: Emulator) -> None:
    embed(emulator, source, output)
    embed(emulator, source, output, settings={"long_text": "truncate"})
    with pytest.raises(InvalidInput, match="long_text was 'truncate' and is now 'average'"):
        embed(emulator, source, output, settings={"long_text": "average"})
    assert emulator.billed_texts == len(TEXTS)


def test_two_runs_into_one_output_are_not_let_in(source: Path, output: Path, emulator: Emulator) -> None:
    said: list[str] = []

    def again(_: corpus.Progress) -> None:
        if not said:
            with pytest.raises(InvalidInput, match="another run is at work") as caught:
                embed(emulator, source, output)
            said.append(str(caught.value))

    assert embed(emulator, source, output, progress=again).embedded == len(TEXTS)
    assert said


def reply_of_width(width: int) -> PaidReply:
    reply = PaidReply((1, 1, 4))
    reply.add(1, text_hash("a text"), PackedVectors(bytes(4 * width)))
    return reply


def test_vectors_of_another_width_are_not_kept(tmp_path: Path) -> None:
    checkpoint = CheckpointStore.open(tmp_path / "checkpoint")
    checkpoint.add_items([InputText(0, None, "in.txt:1", "a text")], with_text=False)
    checkpoint.store_reply(reply_of_width(2))
    with pytest.raises(BadReply, match="different widths"):
        checkpoint.store_reply(reply_of_width(3))
    checkpoint.close()
    checkpoint = CheckpointStore.open(tmp_path / "checkpoint")
    assert checkpoint.dimension == 2
    with pytest.raises(BadReply, match="different widths"):
        checkpoint.store_reply(reply_of_width(3))
    checkpoint.close()


# --- what the service refuses ------------------------------------------------------------------------------


def test_refused_texts_are_named_and_the_rest_goes_on(tmp_path: Path, output: Path) -> None:
    emulator = Emulator(faults=[faults.Blocked(match="number 17"), faults.Blocked(match="number 94")])
    texts = [*TEXTS, TEXTS[17]]
    summary = embed(emulator, write_lines(tmp_path / "in.txt", texts), output)
    kept = [number for number, text in enumerate(texts) if text not in {TEXTS[17], TEXTS[94]}]
    assert (summary.texts, summary.rejected, summary.embedded) == (96, 3, 93)
    assert summary.rejects == corpus.rejects_beside(output)
    assert [(row.id, row.dense) for row in read_vectors(output)] == [
        (n, expected_vector(emulator, texts[n])) for n in kept
    ]
    found = read_rejects(output)
    assert [row["id"] for row in found] == [17, 94, 95]
    assert [row["place"] for row in found] == [f"{tmp_path / 'in.txt'}:{line}" for line in (18, 95, 96)]
    assert {row["code"] for row in found} == {"DataInspectionFailed"}
    assert all(len(row["request_id"]) == 36 and "inappropriate content" in row["reason"] for row in found)
    assert emulator.billed_texts == 93


def test_refused_texts_are_asked_again_only_when_that_is_wanted(source: Path, output: Path) -> None:
    emulator = Emulator(faults=[faults.Blocked(match="number 17")])
    embed(emulator, source, output)
    asked = emulator.requests
    assert embed(emulator, source, output).rejected == 1
    assert emulator.requests == asked
    emulator.faults = []
    summary = embed(emulator, source, output, retry_rejected=True)
    assert (summary.rejected, summary.embedded, summary.rejects) == (0, 1, None)
    assert not corpus.rejects_beside(output).exists()
    assert len(read_vectors(output)) == len(TEXTS)
    assert emulator.billed_texts == len(TEXTS)


def test_a_text_that_is_surely_too_long_is_refused_before_the_others_are_paid(
    tmp_path: Path, output: Path, emulator: Emulator
) -> None:
    source = write_lines(tmp_path / "in.txt", ["a", "word " * 100_000, "b"])
    with pytest.raises(InvalidInput, match=r"in\.txt:2: its text is far longer .*nothing was sent"):
        embed(emulator, source, output)
    assert emulator.requests == 0
    embed(emulator, source, output, on_bad_input="skip")
    assert [row.id for row in read_vectors(output)] == [0, 2]
    (row,) = read_rejects(output)
    assert (row["id"], row["code"], row["request_id"]) == (1, None, None)
    assert "far longer" in row["reason"]
    assert emulator.requests == 1


def test_a_text_that_the_service_finds_too_long_is_rejected_with_its_code(tmp_path: Path, output: Path) -> None:
    emulator = Emulator(tokens_per_row=50)
    texts = ["a", "word " * 300, *TEXTS, "longer " * 300]
    embed(emulator, write_lines(tmp_path / "in.txt", texts), output, settings={"max_concurrency": 1})
    assert [row.id for row in read_vectors(output)] == [0, *range(2, len(TEXTS) + 2)]
    row, later = read_rejects(output)
    assert row["code"] == "InvalidParameter"
    assert "Range of input length" in row["reason"]
    assert later["code"] is None, "the limit is known by now"
    assert later["reason"].startswith("the text is far longer (2100 characters) than the model's 50 tokens: ")
    assert later["reason"].endswith("; not sent")


def test_a_refusal_of_everything_rejects_nothing(source: Path, output: Path, emulator: Emulator) -> None:
    emulator.faults = [faults.RowRefused(message="parameter of the whole request is invalid", every=1)]
    with pytest.raises(BadRequestError):
        embed(emulator, source, output)
    emulator.faults = []
    summary = embed(emulator, source, output)
    assert (summary.rejected, summary.embedded) == (0, len(TEXTS))


# --- interruptions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.Status(status=401, code="InvalidApiKey", after=4, every=1), AuthenticationError),
        (faults.Drop(how="unreachable", after=4, every=1), ConnectionFailed),
    ],
)
def test_after_a_revoked_key_or_a_lost_network_the_same_call_goes_on(
    fault: Any, error: type[Exception], source: Path, output: Path, emulator: Emulator
) -> None:
    emulator.faults = [fault]
    with pytest.raises(error) as caught:
        embed(emulator, source, output, settings={"max_concurrency": 2, "max_retries": 1})
    assert str(caught.value).startswith("55 of 95 texts have no vectors yet: ")
    assert "error.failed" not in str(caught.value)
    assert (caught.value.partial, caught.value.failed) == ({}, []), "indices of texts mean nothing here"  # type: ignore[attr-defined] # of DashScopeError
    assert ("Run it again: " in str(caught.value)) == (error is ConnectionFailed)
    assert emulator.billed_texts == 40
    assert not output.exists()
    emulator.faults = []
    summary = embed(emulator, source, output)
    assert summary.embedded == len(TEXTS) - 40
    assert emulator.billed_texts == len(TEXTS) == summary.spent.texts
    assert [row.dense for row in read_vectors(output)] == [expected_vector(emulator, text) for text in TEXTS]


def test_a_stopped_run_keeps_what_was_in_flight_and_goes_on(source: Path, output: Path, emulator: Emulator) -> None:
    stop = threading.Event()
    settings = {"max_concurrency": 2}
    summary = embed(emulator, source, output, settings=settings, stop=stop.is_set, progress=lambda _: stop.set())
    assert not summary.finished
    assert 0 < summary.embedded == emulator.billed_texts < len(TEXTS)
    assert not output.exists()
    assert embed(emulator, source, output).finished
    assert emulator.billed_texts == len(TEXTS)


def test_ctrl_c_in_a_callback_loses_nothing_that_was_paid_for(source: Path, output: Path, emulator: Emulator) -> None:
    def interrupt(_: corpus.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(emulator, source, output, settings={"max_concurrency": 1}, progress=interrupt)
    billed = emulator.billed_texts
    assert 0 < billed < len(TEXTS)
    embed(emulator, source, output)
    # Of one request in flight it may not be known that it was answered.
    assert len(TEXTS) <= emulator.billed_texts <= len(TEXTS) + 10


def test_a_reply_is_in_the_checkpoint_before_a_slower_one_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order is restored for the caller; what is paid for does not wait for it."""
    emulator, later = Emulator(), threading.Event()
    texts = [f"{'slow' if number < 10 else 'fast'} {number}" for number in range(30)]

    def answer(request: httpx.Request) -> httpx.Response:
        if b"slow" in request.content:
            assert later.wait(30)
        return emulator(request)

    kept: list[list[int]] = []
    store_reply = CheckpointStore.store_reply

    def noted(self: CheckpointStore, reply: PaidReply) -> None:
        store_reply(self, reply)
        kept.append([row[0] for row in reply.rows])
        if len(kept) == 2:
            later.set()

    monkeypatch.setattr(CheckpointStore, "store_reply", noted)
    client = EmbeddingClient(
        api_key="sk-made-up", dimensions=DIMENSIONS, http_client=httpx.Client(transport=httpx.MockTransport(answer))
    )
    corpus.embed_corpus(write_lines(tmp_path / "in.txt", texts), tmp_path / "out.jsonl", client=client)
    assert sorted(kept[:2]) == [list(range(11, 21)), list(range(21, 31))]
    assert kept[2] == list(range(1, 11))
    assert [row.id for row in read_vectors(tmp_path / "out.jsonl")] == list(range(30))


class CrashError(Exception):
    """In place of the end of the process."""


def crash_at(patch: pytest.MonkeyPatch, nth: int, *, before: bool) -> Counter[str]:
    """From the nth step on, nothing more is done to the checkpoint or the disk; that step itself still is, or not."""
    steps: Counter[str] = Counter()

    def dying(owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def step(*arguments: Any, **named: Any) -> Any:
            steps[name] += 1
            done = steps.total()
            if done > nth or (done == nth and before):
                raise CrashError(name)
            result = real(*arguments, **named)
            if done == nth:
                raise CrashError(name)
            return result

        patch.setattr(owner, name, step)

    dying(Database, "_commit")
    dying(os, "fsync")
    dying(Path, "replace")
    return steps


@pytest.mark.parametrize("ending", [".jsonl", ".npy"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_at_any_step_leaves_no_hole_and_no_double(moment: str, ending: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.txt", TEXTS[:45])
    refusing = [faults.Blocked(match="number 17")]
    whole = tmp_path / f"whole{ending}"
    embed(Emulator(faults=refusing), source, whole)
    for nth in range(1, 60):
        emulator = Emulator(faults=refusing)
        output = tmp_path / f"out{nth}{ending}"
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, nth, before=moment == "before")
            try:
                embed(emulator, source, output, settings={"max_concurrency": 2})
            except CrashError:
                crashed = True
            else:
                crashed = False
        if output.exists() and ending != ".npy":
            assert read_vectors(output) == read_vectors(whole), f"an output that is not whole after step {nth}"
        embed(emulator, source, output)
        assert read_vectors(output) == read_vectors(whole), f"step {nth}"
        assert [row["id"] for row in read_rejects(output)] == [17]
        # What was in flight is at most what two threads had under way.
        assert 44 <= emulator.billed_texts <= 44 + 20 + 10, f"step {nth}"
        if not crashed:
            break
    else:
        pytest.fail("more steps than are tried here")
    assert nth > 10


@pytest.mark.parametrize("ending", [".jsonl", ".npy"])
def test_while_an_output_is_replaced_it_is_the_old_or_the_new_one(ending: str, tmp_path: Path) -> None:
    emulator, output = Emulator(), tmp_path / f"out{ending}"
    source = write_lines(tmp_path / "in.txt", TEXTS[:45])
    embed(emulator, source, output, with_text=True)
    old = read_vectors(output)
    swapped = write_lines(tmp_path / "swapped.txt", reversed(TEXTS[:45]))
    embed(emulator, swapped, output, with_text=True)
    new = read_vectors(output)
    for nth in itertools.count(1):
        embed(emulator, source, output, with_text=True)
        with pytest.MonkeyPatch.context() as patch, output.open("rb") as reader:
            before = output.read_bytes()
            steps = crash_at(patch, nth, before=False)
            with contextlib.suppress(CrashError):
                embed(emulator, swapped, output, with_text=True)
            assert reader.read() == before, "who had it open reads on"
        try:
            assert read_vectors(output) in (old, new)
        except InvalidInput as error:
            assert "run the command again" in str(error)  # noqa: PT017 - not every step ends in it
        if steps.total() < nth:
            break
    assert nth > 5
    assert emulator.billed_texts == 45


# --- before it runs ----------------------------------------------------------------------------------------


def test_an_estimate_asks_nothing_and_leaves_nothing(tmp_path: Path, source: Path, emulator: Emulator) -> None:
    client = client_for(emulator, model="text-embedding-v3")  # whose tokens are counted by a rule of thumb
    write_lines(source, [*TEXTS, *TEXTS])
    found = corpus.estimate_corpus([source, source], tmp_path / "out.jsonl", client=client)
    assert (found.texts, found.pending, found.skipped) == (190, 95, 0)
    assert found.tokens == round(sum(len(text) / 4 for text in TEXTS))
    assert found.real_time is not None
    assert found.batch is not None
    assert found.real_time.amount == found.batch.amount * 2
    assert emulator.requests == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt"]


def test_an_estimate_leaves_out_what_is_paid_for_already_and_changes_nothing(
    tmp_path: Path, source: Path, output: Path, emulator: Emulator
) -> None:
    embed(emulator, source, output)
    client = client_for(emulator, dimensions=DIMENSIONS, long_text="truncate")
    more = write_lines(tmp_path / "more.txt", [*TEXTS, "new"])
    found = corpus.estimate_corpus(more, output, client=client)
    assert (found.texts, found.pending, found.tokens) == (96, 1, 1)
    # The estimate was for another treatment of long texts: it must not have agreed on it.
    assert embed(emulator, source, output, settings={"long_text": "average"}).embedded == 0
    with pytest.raises(InvalidInput, match="model was"):
        corpus.estimate_corpus(source, output, client=client_for(emulator, model="text-embedding-v3", dimensions=64))


def test_an_unknown_price_is_not_made_up(source: Path, emulator: Emulator) -> None:
    client = client_for(emulator, base_url="http://127.0.0.1:9")
    found = corpus.estimate_corpus(source, client=client)
    assert (found.real_time, found.batch) == (None, None)


def test_progress_counts_up_to_all_texts_and_what_they_cost(source: Path, output: Path) -> None:
    emulator = Emulator(faults=[faults.Blocked(match="number 17")])
    told: list[corpus.Progress] = []
    summary = embed(emulator, source, output, progress=told.append)
    assert [now.done for now in told] == sorted(now.done for now in told)
    last = told[-1]
    assert (last.done, last.total, last.rejected) == (95, 95, 1)
    assert last.usage == summary.usage
    assert (last.usage.texts, last.usage.tokens) == (emulator.billed_texts, emulator.billed_tokens)


def test_a_checkpoint_in_which_nothing_was_paid_takes_other_settings(source: Path, output: Path) -> None:
    """After a wrong region or a mistyped model, the advice that was given can be followed."""
    stranger = Emulator(api_key="sk-of-another-region")
    with pytest.raises(AuthenticationError):
        embed(stranger, source, output, settings={"dimensions": 128})
    emulator = Emulator()
    assert embed(emulator, source, output).finished
    assert emulator.billed_texts == len(TEXTS)


def test_texts_that_were_too_long_are_asked_again_when_that_is_allowed(tmp_path: Path, emulator: Emulator) -> None:
    source, output = write_lines(tmp_path / "in.txt", ["short", "word " * 12_000]), tmp_path / "out.jsonl"
    model = {"model": "text-embedding-v3"}  # whose tokens are not counted exactly
    assert embed(emulator, source, output, settings=model).rejected == 1
    assert embed(emulator, source, output, settings=model | {"long_text": "truncate"}).rejected == 0
    assert len(read_vectors(output)) == 2
