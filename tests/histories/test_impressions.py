"""Raw columns and impressions through ingest: nothing lost, nothing from the future."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.histories.attributes import SideTable
from recsys.histories.features import Numeric, check_features
from recsys.histories.impressions import ImpressionColumns, ImpressionLog, history_ends_at
from recsys.histories.ingest import Extras, ingest, read_report, render_report
from recsys.histories.store import StoreError, open_store
from recsys.logs.cleaning import Cleaning
from recsys.logs.errors import LogError
from recsys.logs.schema import Columns
from tests.histories.test_attributes import raw

COLUMNS = Columns("user", "item", "time")
ANY = Cleaning()
START = 1_600_000_000

events = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), st.integers(0, 5)),
    min_size=1,
    max_size=12,
)


def write(path, data, names=("user", "item", "time")):
    columns = {name: [row[i] for row in data] for i, name in enumerate(names)}
    columns["time"] = [START + time for time in columns["time"]]
    pl.DataFrame(columns, strict=False).write_csv(path)
    return str(path)


def shown_log(folder, data, **changes):
    """Rows of user, item, time, label, request, device."""
    names = ("user", "item", "time", "label", "request", "device")
    path = write(folder / "shown.csv", data, names)
    return ImpressionLog(path, ImpressionColumns(), {"device": "data.features.device.column"})


@settings(max_examples=8, deadline=None)
@given(events)
def test_raw_columns_follow_their_events(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    data = [("u", "a", 0), ("v", "a", 0), *data]  # two events of an item are always left
    data = [(*row, f"note {n % 4}", n + 0.5) for n, row in enumerate(data)]
    path = write(folder / "log.csv", data, ("user", "item", "time", "note", "amount"))
    pl.read_csv(path).write_parquet(folder / "log.parquet")
    extras = Extras(from_log={"event": {"note": "s", "amount": "s"}})
    cleaning = Cleaning(item_core=2, drop_consecutive_repeats=True)
    folder = ingest(str(folder / "log.parquet"), COLUMNS, cleaning, folder / "cache", extras=extras)
    store = open_store(folder, verify=True)
    users = store.user_vocabulary.raw(np.repeat(np.arange(store.users), store.lengths)).to_list()
    items = store.item_vocabulary.raw(store.items).to_list()
    notes, amounts = raw(store.attributes["event.note"]), raw(store.attributes["event.amount"])
    assert isinstance(store.attributes["event.amount"].numbers, np.memmap)
    for user, item, note, amount in zip(users, items, notes, amounts, strict=True):
        row = data[int(amount)]
        assert (user, item, note, amount) == (row[0], row[1], row[3], row[4])
    assert len(set(amounts)) == store.events


def test_declaring_a_feature_changes_no_event(tmp_path):
    data = [("u", "a", 0, 1), ("u", "a", 0, 2), ("u", "b", 1, 3)]
    path = write(tmp_path / "log.csv", data, ("user", "item", "time", "amount"))
    cleaning = Cleaning(deduplicate="exact")
    plain = open_store(ingest(path, COLUMNS, cleaning, tmp_path / "cache"))
    extras = Extras(from_log={"event": {"amount": "s"}})
    more = open_store(ingest(path, COLUMNS, cleaning, tmp_path / "cache", extras=extras))
    assert plain.items.tolist() == more.items.tolist() == [1, 2]
    assert raw(more.attributes["event.amount"]) == ["1", "3"]
    assert plain.fingerprint != more.fingerprint
    assert plain.attributes == {}


def side_table(folder, **columns):
    pl.DataFrame(columns).write_csv(folder / "items.csv")
    return SideTable(str(folder / "items.csv"), "item", {"genre": "s"}, "data.items")


def test_a_store_is_found_again_until_a_table_or_the_columns_change(tmp_path):
    path = write(tmp_path / "log.csv", [("u", "a", 0), ("u", "b", 1)])

    def made(table):
        return ingest(path, COLUMNS, ANY, tmp_path / "cache", extras=Extras(items=table))

    table = side_table(tmp_path, item=["a", "z"], genre=["x", "y"], size=[1, 2])
    first = made(table)
    assert made(table) == first
    store = open_store(first)
    assert raw(store.attributes["item.genre"]) == [None, "x", None]
    assert read_report(first)["tables"] == {"items": {"rows": 2, "rows_left_out": 1, "absent": 1}}
    text = render_report(read_report(first))
    assert "table of items: 2 rows, 1 of them" in text
    assert "item.genre: 1 values; missing in 1 of 2" in text
    other = SideTable(table.path, "item", {"genre": "s", "size": "s"}, "data.items")
    assert made(other) != first
    side_table(tmp_path, item=["a", "z"], genre=["x2", "y"], size=[1, 2])
    assert made(table) != first


def test_columns_about_users_and_items_may_stand_in_the_log(tmp_path):
    data = [("u", "a", 0, "x", 30), ("v", "a", 1, "x", 40), ("u", "b", 2, "y", 30)]
    names = ("user", "item", "time", "genre", "age")
    path = write(tmp_path / "log.csv", data, names)
    columns = {"item": {"genre": "s"}, "user": {"age": "s"}}
    store = open_store(
        ingest(path, COLUMNS, ANY, tmp_path / "cache", extras=Extras(from_log=columns))
    )
    assert raw(store.attributes["item.genre"]) == [None, "x", "y"]
    assert raw(store.attributes["user.age"]) == ["30", "40"]
    write(tmp_path / "log.csv", [*data, ("v", "b", 3, "x", 40)], names)
    with pytest.raises(LogError, match=r"log\.csv: column 'genre' \(s\) is not the same"):
        ingest(path, COLUMNS, ANY, tmp_path / "cache", extras=Extras(from_log=columns))
    missing = Extras(from_log={"event": {"gnre": "data.features.g.column"}})
    with pytest.raises(LogError, match=r"no column 'gnre' \(data\.features\.g\.column\).*'genre'"):
        ingest(path, COLUMNS, ANY, tmp_path / "cache", extras=missing)


@pytest.mark.parametrize("of", ["user", "item"])
@pytest.mark.parametrize("answer", ["clicked", "stars"])
@pytest.mark.parametrize("labels", [(0, 1, 0), (0, 0, 1)])
def test_the_answer_is_no_property_of_a_user_or_an_item(tmp_path, of, answer, labels):
    # With three items that stand in the log once, or with an item of which it is not the same.
    items = "abc" if labels == (0, 1, 0) else "aba"
    data = [(user, items[n], n, labels[n], labels[n] + 3) for n, user in enumerate("uvu")]
    path = write(tmp_path / "log.csv", data, ("user", "item", "time", "clicked", "stars"))
    columns = Columns("user", "item", "time", label="clicked", rating="stars")

    def made(of):
        extras = Extras(from_log={of: {answer: "data.features.f.column"}})
        return ingest(path, columns, ANY, tmp_path / "cache", extras=extras)

    words = rf"^data\.features\.f\.column: '{answer}' is the answer.*of=event"
    with pytest.raises(LogError, match=words) as refused:
        made(of)
    assert "context" not in str(refused.value)
    # As behaviour it is welcome: an event's own question never sees it.
    assert f"event.{answer}" in open_store(made("event")).attributes
    # A table of its own may call a column whatever it likes.
    things = {"user": ["u", "v"], "item": ["a", "b"]}
    pl.DataFrame({of: things[of], answer: [1, 2]}).write_csv(tmp_path / "table.csv")
    table = SideTable(str(tmp_path / "table.csv"), of, {answer: "s"}, f"data.{of}s")
    extras = Extras(**{f"{of}s": table})
    store = open_store(ingest(path, columns, ANY, tmp_path / "cache", extras=extras))
    assert f"{of}.{answer}" in store.attributes


def test_a_damaged_attribute_is_named(tmp_path):
    path = write(tmp_path / "log.csv", [("u", "a", 0), ("u", "b", 1)])
    table = side_table(tmp_path, item=["a", "b"], genre=["x", "y"])
    folder = ingest(path, COLUMNS, ANY, tmp_path / "cache", extras=Extras(items=table))
    (folder / "attributes" / "item.genre.codes.npy").write_bytes(b"")
    with pytest.raises(StoreError, match=r"genre\.codes\.npy is truncated.*data\.verify=true"):
        open_store(folder)


def test_columns_and_lists_of_any_name_and_length(tmp_path):
    frame = pl.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "time": [START, START]})
    strange = "a/b ü%. "
    frame = frame.with_columns(pl.Series(strange, [[], []], dtype=pl.List(pl.String)))
    frame.write_parquet(tmp_path / "log.parquet")
    extras = Extras(from_log={"event": {strange: "s"}})
    folder = ingest(str(tmp_path / "log.parquet"), COLUMNS, ANY, tmp_path / "cache", extras=extras)
    assert raw(open_store(folder, verify=True).attributes[f"event.{strange}"]) == [[], []]


def test_labels_from_ratings(tmp_path):
    data = [("u", "a", 0, 5), ("u", "b", 1, 3.5), ("v", "a", 0, 4), ("v", "b", 1, None)]
    path = write(tmp_path / "log.csv", data, ("user", "item", "time", "stars"))
    columns = Columns("user", "item", "time", rating="stars")
    cache = tmp_path / "cache"
    store = open_store(ingest(path, columns, ANY, cache, label_from_rating=4))
    assert store.labels.tolist() == [1, 0, 1, -1]
    only = Cleaning(positive_only=True)
    assert open_store(ingest(path, columns, only, cache, label_from_rating=4)).events == 2
    with pytest.raises(LogError, match=r"label_from_rating=4 needs a rating.*columns\.rating"):
        ingest(path, COLUMNS, ANY, cache, label_from_rating=4)
    both = Columns("user", "item", "time", rating="stars", label="stars")
    with pytest.raises(LogError, match="both say what the label is"):
        ingest(path, both, ANY, cache, label_from_rating=4)


# --- impressions ---


@settings(max_examples=30)
@given(events, events, st.booleans())
def test_history_ends_count_what_is_strictly_before(before, shown, by_order):
    """Against a plain loop; with an order of its own, counting stops at the first later event."""
    users = sorted("uvw")
    histories = {u: [t for who, _, t in before if who == u] for u in users}
    if not by_order:
        histories = {u: sorted(times) for u, times in histories.items()}
    offsets = np.cumsum([0, *(len(histories[u]) for u in users)])
    times = np.array([t for u in users for t in histories[u]], dtype=np.int64)
    asked = np.array([users.index(u) for u, _, _ in shown])
    moments = np.array([t for *_, t in shown], dtype=np.int64)
    expected = []
    for user, moment in zip(asked, moments, strict=True):
        count = 0
        for time in histories[users[user]]:
            if time >= moment:
                break
            count += 1
        expected.append(count)
    assert history_ends_at(offsets, times, asked, moments).tolist() == expected


@settings(max_examples=8, deadline=None)
@given(events, events)
def test_impressions_beside_histories(tmp_path_factory, before, shown):
    folder = tmp_path_factory.mktemp("log")
    path = write(folder / "log.csv", before)
    shown = [(*row, n % 2, f"r{n // 2}", f"d{n}") for n, row in enumerate(shown)]
    shown += [("x", "new", 3, 0, "", ""), ("x", "new", 2, 1, "r0", "last")]
    log = shown_log(folder, shown)
    made = ingest(path, COLUMNS, ANY, folder / "cache", extras=Extras(impressions=log))
    store = open_store(made, verify=True)
    found = store.impressions
    people, things = {r[0] for r in [*before, *shown]}, {r[1] for r in [*before, *shown]}
    assert store.user_vocabulary.raw_ids.to_list() == sorted(people)
    assert store.item_vocabulary.raw_ids.to_list() == sorted(things)
    assert store.events == len(before)
    ordered = sorted(shown, key=lambda row: (row[0], row[2]))
    assert store.user_vocabulary.raw(found.users).to_list() == [row[0] for row in ordered]
    assert store.item_vocabulary.raw(found.items).to_list() == [row[1] for row in ordered]
    assert found.labels.tolist() == [row[3] for row in ordered]
    assert found.times.tolist() == [(START + row[2]) * 10**6 for row in ordered]
    assert raw(found.attributes["context.device"]) == [row[5] or None for row in ordered]
    ends = [sum(e[0] == row[0] and e[2] < row[2] for e in before) for row in ordered]
    assert found.history_ends.tolist() == ends
    for one, request in zip(ordered, found.requests, strict=True):
        for other, same in zip(ordered, found.requests, strict=True):
            assert (request == same) == (one[4] == other[4])
        assert (request == -1) == (one[4] == "")
    report = read_report(made)["impressions"]
    # A request is asked as its first row finds the user.
    asked = (ordered[::-1], ends[::-1])
    starts = {(row[0], row[4] or row[2]): end for row, end in zip(*asked, strict=True)}
    empty = [starts[row[0], row[4] or row[2]] == 0 for row in ordered]
    assert report["before_first_event"] == sum(empty)
    assert report["users_without_history"] == len(people - {row[0] for row in before})
    assert report["items_without_events"] == len(things - {row[1] for row in before})


GOOD = [("u", "a", 5, 1, "r", "d"), ("u", "b", 5, 0, "r", "d"), ("u", "c", 6, 0, "s", "d")]
HISTORY = [("u", "a", 0), ("u", "b", 9)]


def ingested(folder, shown, cleaning=ANY, history=HISTORY, columns=COLUMNS):
    path = write(folder / "log.csv", history)
    log = shown_log(folder, shown)
    return ingest(path, columns, cleaning, folder / "cache", extras=Extras(impressions=log))


def test_impressions_are_reported(tmp_path):
    shown = [*GOOD, ("u", None, 7, 0, "lost", "d"), ("v", "a", 5, 1, "r", "d")]
    folder = ingested(tmp_path, shown, Cleaning(max_bad_share=0.5))
    report = read_report(folder)["impressions"]
    assert report["quarantined"] == {"the item id is missing": 1}
    assert (report["requests"], report["requests_without_candidates"]) == (2, 1)
    assert (report["rows_in"], report["rows_out"], report["clicked"]) == (5, 4, 2)
    text = render_report(read_report(folder))
    assert "2 requests; 1 more are left without a usable candidate" in text
    assert "before the user's first event (empty history): 1; users without any event: 1" in text
    rejected = pl.read_parquet(folder / "quarantine_impressions.parquet")
    assert rejected.select("request", "line").rows() == [("lost", 5)]
    open_store(folder, verify=True)


def test_a_request_counts_as_its_first_row_finds_the_user(tmp_path):
    # The user's first event is at 0, between the two rows of the request.
    shown = [("u", "a", -1, 1, "r", "d"), ("u", "b", 5, 0, "r", "d"), ("u", "c", 6, 0, "s", "d")]
    report = read_report(ingested(tmp_path, shown))["impressions"]
    assert report["before_first_event"] == 2


@pytest.mark.parametrize(("label", "reason"), [(2, "is not 0 or 1"), (None, "is missing")])
def test_a_label_that_is_not_0_or_1_is_set_aside_or_stops(tmp_path, label, reason):
    shown = [*GOOD, ("u", "c", 7, label, "t", "d")]
    with pytest.raises(LogError, match=rf"1 of 4 rows.*the label {reason}: 1\. First: .*, line 5"):
        ingested(tmp_path, shown)
    report = read_report(ingested(tmp_path, shown, Cleaning(max_bad_share=0.25)))
    assert report["impressions"]["quarantined"] == {f"the label {reason}": 1}


def test_impressions_that_are_refused(tmp_path):
    with pytest.raises(LogError, match=r"shown\.csv: all 2 impressions have the label 0 .*'label'"):
        ingested(tmp_path, GOOD[1:])
    late = Cleaning(time_from="2030-01-01")
    with pytest.raises(LogError, match=r"none of 3 impressions lies between data\.time_from"):
        ingested(tmp_path, GOOD, late)
    bad = [(user, None, *rest) for user, _, *rest in GOOD]
    with pytest.raises(LogError, match=r"3 of 3 rows.*item id is missing"):
        ingested(tmp_path, bad)
    log = ImpressionLog(write(tmp_path / "x.csv", HISTORY), ImpressionColumns(), {})
    arguments = (str(tmp_path / "log.csv"), COLUMNS, ANY, tmp_path / "cache")
    with pytest.raises(LogError, match=r"no column 'label' \(data\.impressions\.columns\.label\)"):
        ingest(*arguments, extras=Extras(impressions=log))
    gone = ImpressionLog(str(tmp_path / "show.csv"), ImpressionColumns(), {})
    with pytest.raises(LogError, match=r"\(data\.impressions\.path;.*'shown\.csv'"):
        ingest(*arguments, extras=Extras(impressions=gone))


def test_impressions_need_the_times_of_all_events(tmp_path):
    order = Columns("user", "item", None, "time")
    with pytest.raises(LogError, match="needs a history log with times"):
        ingested(tmp_path, GOOD, columns=order)
    frame = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "at": [1, 2]})
    frame = frame.with_columns(time=pl.Series([START, None]))
    frame.write_csv(tmp_path / "log.csv")
    log = shown_log(tmp_path, GOOD)
    with pytest.raises(LogError, match="1 events have no time"):
        ingest(
            str(tmp_path / "log.csv"),
            Columns("user", "item", "time", "at"),
            ANY,
            tmp_path / "cache",
            extras=Extras(impressions=log),
        )


def test_the_time_range_holds_for_impressions_too(tmp_path):
    folder = ingested(tmp_path, GOOD, Cleaning(time_until="2020-09-13T12:26:46"))
    assert read_report(folder)["impressions"]["outside_time_range"] == 1
    assert len(open_store(folder).impressions) == 2


def test_a_wrong_feature_leaves_no_store(tmp_path):
    path = write(tmp_path / "log.csv", [("u", "a", 0), ("u", "b", 1)])
    table = side_table(tmp_path, item=["a", "b"], genre=["1", "y"])
    with pytest.raises(ValueError, match=r"'genre' of item does not hold numbers only.*'y'"):
        ingest(
            path,
            COLUMNS,
            ANY,
            tmp_path / "cache",
            extras=Extras(items=table),
            accept=lambda store: check_features(store, [Numeric("g", "item", "genre")]),
        )
    assert not (tmp_path / "cache").exists()
