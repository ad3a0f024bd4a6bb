"""The web page's server over a real socket: answers against the index, limits, refusals, counts."""

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlencode

import jax
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.tiny_index import BARE, COUNT, MARKUP, served, tiny_index
from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import __main__ as command
from xmodal_jax.retrieval import commands, serve
from xmodal_jax.retrieval.connections import Connection
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item, Part

ROOT = Path(__file__).parents[1]
SENTENCE = "a red circle, left of a blue square"
OUTSIDE = [
    Item("above", "../secret.png"),
    Item("absolute", "/etc/hostname"),
    Item("link", "link.png"),
    Item("no image", "notes.txt"),
    Item("script", "drawn.svg"),
    Item("nul", "a\0.png"),
    Item("a directory", "folder.png"),
    Item("a/b?c#d&e.png", "tiny_test_000000.png"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serve")
    made = tiny_index(directory, extra=OUTSIDE)
    none = jax.tree.map(np.zeros_like, made.stored(np.array([0])))
    made.add([Part([Item("empty")], none, np.zeros((1, 12, 4)))])
    (directory / "secret.png").write_bytes(b"secret")
    (directory / "pictures" / "link.png").symlink_to(directory / "secret.png")
    (directory / "pictures" / "notes.txt").write_text("secret")
    (directory / "pictures" / "drawn.svg").write_text("<svg/>")
    (directory / "pictures" / "folder.png").mkdir()
    return made


@pytest.fixture(scope="module")
def port(index):
    with served(serve.make_app(index)) as port:
        yield port


def ask(port, target, method="GET", headers=(), body=None):
    """Status, headers and body; the target goes out as it is given."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, target, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def told(port, path, **fields):
    status, headers, body = ask(port, f"{path}?{urlencode(fields)}")
    assert status == 200 and headers["Content-Type"] == "application/json"
    return json.loads(body)


def refused(port, target, status, said, **how):
    """An error of one line without anything about the server's insides."""
    found, headers, body = ask(port, target, **how)
    assert found == status, body
    assert headers["Content-Type"] == "application/json"
    content = json.loads(body)
    assert list(content) == ["error"] and said in content["error"]
    text = content["error"]
    assert "\n" not in text and "Traceback" not in text and str(ROOT) not in text
    assert len(text) < 200
    return headers


def test_a_sentence_finds_what_the_index_finds_and_says_which_region_answers(index, port):
    answer = told(port, "/api/search", q=SENTENCE, k=5)
    expected = index.query_text(SENTENCE, 5)
    assert [hit["id"] for hit in answer["hits"]] == [hit.item.id for hit in expected.hits]
    scores = [hit.score for hit in expected.hits]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], scores, atol=6e-5)
    assert (answer["items"], answer["stage"], answer["kind"]) == (len(index), "exact", "tokens")
    words = [SENTENCE[start:end] for start, end in answer["words"]]
    assert words == ["a", "red", "circle", "left", "of", "a", "blue", "square"]
    assert set(answer["milliseconds"]) == {"encoding", "search", "regions"}
    # The regions of each word, from the vectors that are stored: the most similar one.
    tokens = np.asarray(expected.query.embeddings.tokens)[0]
    for hit, found in zip(answer["hits"], expected.hits, strict=True):
        stored = index.stored(np.array([found.row]))
        vectors = np.asarray(stored.tokens)[0][np.asarray(stored.mask)[0]]
        assert len(hit["boxes"]) == len(vectors) == 12
        for number, (region, similarity) in enumerate(hit["matches"]):
            cosines = [float(np.dot(vector, tokens[number])) for vector in vectors]
            assert similarity == pytest.approx(max(cosines), abs=6e-5)
            assert cosines[region] == pytest.approx(max(cosines), abs=1e-5)
        np.testing.assert_allclose(hit["boxes"], index.boxes(found.row), atol=6e-5)


def test_an_image_finds_its_like(index, port):
    id = index.items()[2].id
    answer = told(port, "/api/similar", id=id, k=3)
    assert answer["hits"][0]["id"] == answer["like"]["id"] == id
    assert len(answer["hits"]) == 3 and answer["words"] == []
    assert "text" not in answer and answer["hits"][0]["matches"] == []


def test_items_from_all_over_the_index_are_browsed(index, port):
    ids = [item.id for item in index.items()]
    some = [hit["id"] for hit in told(port, "/api/browse", k=3)["hits"]]
    assert len(some) == 3 and (some[0], some[-1]) == (ids[0], ids[-1]) and set(some) < set(ids)
    assert [hit["id"] for hit in told(port, "/api/browse", k=100)["hits"]] == ids


def test_markup_comes_back_as_it_was_in_json_only(port):
    query = '<img src=x onerror="alert(1)"> red</script>'
    status, headers, body = ask(port, f"/api/search?{urlencode({'q': query})}")
    assert status == 200 and json.loads(body)["text"] == query
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/api/search", "q: Field required"),
        ("/api/search?q=", "q=''"),
        ("/api/search?q=+%09+", "empty"),
        (f"/api/search?q={'x' * 501}", "at most 500 characters"),
        (f"/api/search?q={'a+' * 81}", "81 words; give at most 80"),
        ("/api/search?q=red&k=0", "k='0': Input should be greater than or equal to 1"),
        ("/api/search?q=red&k=101", "k='101': Input should be less than or equal to 100"),
        ("/api/search?q=red&k=1000000000", "k='1000000000'"),
        ("/api/search?q=red&k=-1", "k='-1'"),
        ("/api/search?q=red&k=1e2", "k='1e2'"),
        ("/api/search?q=red&k=ten", "k='ten'"),
        ("/api/similar", "id: Field required"),
        (f"/api/similar?id={'x' * 501}", "at most 500"),
        ("/api/similar?id=a&k=0", "k='0'"),
        ("/api/browse?k=0", "k='0'"),
    ],
)
def test_limits(port, target, said):
    refused(port, target, 400, said)


def test_what_is_just_within_the_limits_is_answered(index, port):
    assert len(told(port, "/api/search", q="red" + " " * 493 + "blue", k=100)["hits"]) == len(index)
    assert len(told(port, "/api/search", q="a " * 80, k=1)["hits"]) == 1
    # The model reads 24 tokens, two of which are no words.
    assert len(told(port, "/api/search", q="red " * 40, k=1)["words"]) == 22


@pytest.mark.parametrize(
    "q", ["%ff%fe", "%00", "%E2%80%8B", "%F0%9F%98%80 red", "%ED%A0%80", "%F0%9D%92%B3"]
)
def test_odd_characters_are_words_or_none(port, q):
    status, _, body = ask(port, f"/api/search?q={quote(q, safe='%')}")
    assert status in (200, 400) and json.loads(body)
    for start, end in json.loads(body).get("words", []):
        assert 0 <= start < end <= len(json.loads(body)["text"])


@pytest.mark.parametrize(
    "item", [item.id for item in OUTSIDE if item.id != "a/b?c#d&e.png"] + [BARE, MARKUP]
)
def test_no_file_outside_of_the_pictures_is_shown(port, item):
    refused(port, f"/image/{quote(item, safe='')}", 404, "has no picture")
    hits = told(port, "/api/similar", id=item)["hits"]
    assert next(hit for hit in hits if hit["id"] == item)["picture"] is False


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "..%2fsecret.png",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "link.png",
        "pictures/tiny_test_000000.png",
        "TINY_TEST_000000.PNG",
        "tiny_test_000000.png%00",
        "nobody.png",
        "",
    ],
)
def test_pictures_are_named_by_ids_and_not_by_paths(port, path):
    refused(port, f"/image/{path}", 404, "the index has no item")


def test_a_picture_comes_as_it_lies_there(index, port):
    for item in index.items()[:COUNT]:
        status, headers, body = ask(port, f"/image/{quote(item.id)}")
        assert status == 200 and headers["Content-Type"] == "image/png"
        assert body == (Path(index.store.about["pictures"]) / item.file).read_bytes()
    status, _, body = ask(port, f"/image/{quote('a/b?c#d&e.png', safe='')}")
    assert status == 200 and body[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        *[("/web/app.js", 404), ("/../serve.py", 404), ("/%2e%2e/serve.py", 404)],
        *[("/docs", 404), ("/redoc", 404), ("/openapi.json", 404), ("/nothing", 404)],
    ],
)
def test_nothing_else_is_there(port, target, status):
    refused(port, target, status, "Not Found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_asking_is_allowed(port, method):
    refused(port, "/api/search?q=red", 405, "Method Not Allowed", method=method)


@pytest.mark.parametrize("headers", [{}, {"Transfer-Encoding": "chunked"}])
def test_a_request_has_no_body(port, headers):
    body = b"3\r\nabc\r\n0\r\n\r\n" if headers else b"x" * 10
    for method in ("GET", "POST"):
        refused(port, "/api/search?q=a", 413, "no body", method=method, headers=headers, body=body)


@pytest.mark.parametrize("sent", [b"GET /?q=" + b"x" * 100_000, b"\x16\x03\x01\r\n\r\n"])
def test_what_is_no_request_is_refused_as_any_other(port, sent):
    with connected(port) as client:
        client.sendall(sent)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 400 and answer.headers["Connection"] == "close"
        assert answer.headers["Content-Security-Policy"] and answer.headers["X-Frame-Options"]
        assert json.loads(answer.read()) == {"error": "Invalid HTTP request received."}


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def seconds_to_the_end(client, send=lambda: None):
    """Until the server ends a connection; `send` is called again and again."""
    start = time.monotonic()
    client.settimeout(0.05)
    while time.monotonic() - start < 20:
        with contextlib.suppress(TimeoutError):
            try:
                send()
                if not client.recv(1000):
                    break
            except ConnectionError:
                break
    return time.monotonic() - start


WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "again"),
    [
        (b"", b""),
        (b"GET /healthz HT", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
        (WHOLE, b""),
        (WHOLE + b"GET /h", b"x"),
        (WHOLE.replace(b"localhost", b"elsewhere"), b""),
        # A body of which no more comes, or ever more.
        (WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Length: 99999\r\n\r\n"), b"x"),
    ],
)
def test_a_connection_that_does_not_ask_ends(index, before, again):
    """Also when it sends a little again and again."""
    with served(serve.make_app(index), patience=0.5) as port, connected(port) as client:
        client.sendall(before)
        assert seconds_to_the_end(client, lambda: client.sendall(again)) < 10
        assert ask(port, "/healthz")[0] == 200


def test_a_connection_that_takes_no_answer_ends(index, tmp_path):
    size = 50_000_000  # more than systems keep for a connection
    with (tmp_path / "tiny_test_000000.png").open("wb") as file:
        file.truncate(size)
    with (
        served(serve.make_app(index, pictures=tmp_path), patience=0.5) as port,
        connected(port) as client,
    ):
        client.sendall(WHOLE.replace(b"/healthz", b"/image/tiny_test_000000.png"))
        time.sleep(2)
        taken = 0
        with contextlib.suppress(ConnectionError):
            while found := client.recv(1 << 20):
                taken += len(found)
        assert 0 < taken < size
        # Who takes it gets it.
        assert len(ask(port, "/image/tiny_test_000000.png")[2]) == size


def test_silent_connections_keep_nobody_out(index, monkeypatch):
    monkeypatch.setattr(Connection, "most", 4)
    with served(serve.make_app(index, most=4), patience=60) as port, ExitStack() as opened:
        silent = [opened.enter_context(connected(port)) for _ in range(6)]
        for _ in range(3):
            assert ask(port, "/healthz")[0] == 200
        # Those that had waited longest made room.
        ended = [client for client in silent if select.select([client], [], [], 0)[0]]
        assert silent[:2] == ended[:2] and silent[-1] not in ended


def test_more_requests_than_can_be_at_work_are_refused_with_all_headers(index, monkeypatch):
    started, gate = threading.Semaphore(0), threading.Event()
    browse = serve._Answers.browse

    def slow(*arguments):
        started.release()
        gate.wait(30)
        return browse(*arguments)

    monkeypatch.setattr(serve._Answers, "browse", slow)
    monkeypatch.setattr(serve, "_WAITING", 2)
    with served(serve.make_app(index, most=2)) as port, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, port, "/api/browse") for _ in range(2)]
        started.acquire()
        while b"xmodal_waiting_searches 2.0" not in (found := ask(port, "/metrics"))[2]:
            if found[0] == 503:
                break
        headers = refused(port, "/healthz", 503, "2 requests are at work already; try again soon")
        assert headers["Retry-After"] == "1" and headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        gate.set()
        assert [future.result()[0] for future in asked] == [200, 200]
        assert ask(port, "/healthz")[0] == 200


PAGES = ["/", "/app.js", "/style.css", "/favicon.svg", "/healthz", "/metrics", "/api/browse"]


@pytest.mark.parametrize("path", [*PAGES, "/image/tiny_test_000000.png", "/nothing", "/api/search"])
def test_every_answer_has_the_headers_that_keep_a_browser_at_home(port, path):
    _, headers, _ = ask(port, path, headers={"Origin": "http://other.example"})
    policy = headers["Content-Security-Policy"].split("; ")
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"unsafe|\*|http", headers["Content-Security-Policy"])
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"]
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "Server" not in headers


def test_the_page_names_nothing_elsewhere():
    for path in (ROOT / "xmodal_jax/retrieval/web").iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*| // .*", "", text, flags=re.MULTILINE), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(|document\.write", text)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[("127.0.0.1", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200)],
        *[("evil.example", 400), ("127.0.0.1.evil.example", 400), ("localhost.", 400), ("", 400)],
        *[("evil.example:8000", 400), ("[::2]", 400), ("[", 400), ("0.0.0.0", 400)],
    ],
)
def test_a_name_that_was_made_to_resolve_to_this_machine_is_refused(port, host, status):
    for path in ("/", "/api/browse"):
        if status == 200:
            assert ask(port, path, headers={"Host": host})[0] == 200
        else:
            refused(port, path, status, "this server is not called", headers={"Host": host})


@pytest.mark.parametrize("site", ["cross-site", "same-site"])  # the latter is another port's
def test_pages_of_other_sites_cannot_ask(port, site):
    headers = {"Sec-Fetch-Site": site}
    assert ask(port, "/", headers=headers)[0] == 200
    for path in ("/api/search?q=red", "/image/tiny_test_000000.png", "/metrics"):
        refused(port, path, 403, "another site", headers=headers)
        for own in ("same-origin", "none"):
            assert ask(port, path, headers={"Sec-Fetch-Site": own})[0] == 200


@pytest.mark.parametrize(
    ("host", "names", "called", "others"),
    [
        ("192.0.2.7", ["Search.example"], ["192.0.2.7:80", "search.example"], ["192.0.2.8"]),
        ("0.0.0.0", [], ["192.0.2.8", "[2001:db8::1]:80", "localhost"], ["search.example"]),
        ("::", [], ["192.0.2.8", socket.gethostname()], ["192.0.2.8.evil.example", "1", ""]),
        ("localhost", ["proxy.example"], ["127.0.0.1", "proxy.example"], ["192.0.2.8"]),
    ],
)
def test_a_server_for_others_answers_to_its_own_names(
    index, monkeypatch, host, names, called, others
):
    made = []
    monkeypatch.setattr(serve, "make_app", lambda *_, hosts, **how: made.append(hosts))
    with pytest.raises(UserError, match="can't listen"):
        serve.run(index, host, 70000, names=names)
    monkeypatch.undo()
    with served(serve.make_app(index, hosts=made[0])) as port:
        for name in called:
            assert ask(port, "/healthz", headers={"Host": name})[0] == 200
        for name in others:
            refused(port, "/healthz", 400, "is not called", headers={"Host": name})


def test_every_image_lights_up_whatever_the_last_one_has(port):
    """An image of no regions is found last."""
    answer = told(port, "/api/search", q=SENTENCE)
    by_id = {hit["id"]: hit for hit in answer["hits"]}
    assert answer["hits"][-1]["id"] == "empty" and by_id["empty"]["matches"] == []
    assert len(answer["words"]) == 8
    assert all(len(hit["matches"]) == 8 for id, hit in by_id.items() if id != "empty")


def test_health_and_counts(index):
    with served(serve.make_app(index)) as port:
        assert json.loads(ask(port, "/healthz")[2]) == {"status": "ok", "items": len(index)}
        for _ in range(3):
            told(port, "/api/search", q="red")
        refused(port, "/api/search?q=red&k=0", 400, "k=")
        for name in ("x", "y"):
            refused(port, f"/image/{name}", 404, "no item")
        refused(port, "/x", 404, "Not Found")
        status, headers, body = ask(port, "/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain")
    samples = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(body.decode())
        for s in family.samples
    }
    requests = lambda route, status: samples[
        ("xmodal_requests_total", ("route", route), ("status", str(status)))
    ]
    assert requests("/api/search", 200) == 3 and requests("/api/search", 400) == 1
    assert requests("/image/{id:path}", 404) == 2 and requests("other", 404) == 1
    route = ("route", "/api/search")
    assert samples[("xmodal_request_seconds_count", route)] == 4
    assert samples[("xmodal_request_seconds_bucket", ("le", "+Inf"), route)] == 4
    assert samples[("xmodal_request_seconds_sum", route)] > 0
    assert samples[("xmodal_items",)] == len(index)
    assert not [key for key in samples if key[0] == "xmodal_errors_total"]


def test_a_failure_is_one_line_and_counted(index, monkeypatch):
    def fail(*_, **__):
        raise UserError("a file in /secret/place is damaged")

    with served(serve.make_app(index)) as port:
        monkeypatch.setattr(Index, "search", fail)
        headers = refused(port, "/api/search?q=red", 500, "the server failed")
        assert headers["Content-Security-Policy"]
        assert "secret" not in ask(port, "/api/search?q=red")[2].decode()
        metrics = ask(port, "/metrics")[2].decode()
        assert 'xmodal_errors_total{route="/api/search"} 2.0' in metrics


def test_searches_wait_for_each_other_and_too_many_are_refused(index, monkeypatch):
    running, most, gate = 0, 0, threading.Event()
    search = Index.search

    def slow(*arguments, **how):
        nonlocal running, most
        running += 1
        most = max(most, running)
        gate.wait(30)
        running -= 1
        return search(*arguments, **how)

    monkeypatch.setattr(Index, "search", slow)
    with served(serve.make_app(index)) as port, ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, port, "/api/search?q=red") for _ in range(30)]
        while sum(future.done() for future in asked) < 30 - 16:
            threading.Event().wait(0.02)
        # Others are served meanwhile.
        assert ask(port, "/healthz")[0] == 200
        assert "xmodal_waiting_searches 16.0" in ask(port, "/metrics")[2].decode()
        assert refused(port, "/api/search?q=red", 503, "waiting")["Retry-After"] == "1"
        gate.set()
        found = [future.result()[0] for future in asked]
    assert sorted(found) == [200] * 16 + [503] * 14 and most == 1


def test_an_index_of_captions_has_no_page(index, tmp_path):
    captions = Index.build(tmp_path / "c", index.model, side="captions")
    with pytest.raises(UserError, match="holds captions and the page shows images.*--side=images"):
        serve.make_app(captions)


def test_models_without_regions_are_searched_too(tmp_path):
    index = tiny_index(tmp_path, "vse")
    with served(serve.make_app(index)) as port:
        answer = told(port, "/api/search", q=SENTENCE)
        assert answer["kind"] == "vector" and len(answer["hits"]) == len(index)
        assert answer["words"] == [] and all(hit["matches"] == [] for hit in answer["hits"])


def test_what_was_removed_is_gone_and_an_empty_index_has_a_page(tmp_path):
    index = tiny_index(tmp_path)
    ids = [item.id for item in index.items()]
    index.remove(ids[:1])
    with served(serve.make_app(index)) as port:
        refused(port, f"/image/{ids[0]}", 404, "no item")
        refused(port, f"/api/similar?id={ids[0]}", 404, "no item")
        assert ids[0] not in [hit["id"] for hit in told(port, "/api/search", q="red")["hits"]]
        assert ask(port, f"/image/{ids[1]}")[0] == 200
        index.remove(ids[1:])
        for path, fields in (("browse", {}), ("search", {"q": "red"})):
            answer = told(port, f"/api/{path}", **fields)
            assert answer["items"] == 0 and answer["hits"] == []


def test_pictures_that_are_gone_or_elsewhere(index, tmp_path):
    with pytest.raises(UserError, match=f"not at {tmp_path}/x; .*--pictures"):
        serve.make_app(index, pictures=tmp_path / "x")
    shutil.copytree(index.store.about["pictures"], tmp_path / "moved", symlinks=True)
    with served(serve.make_app(index, pictures=tmp_path / "moved")) as port:
        assert ask(port, "/image/tiny_test_000001.png")[0] == 200


def test_a_port_that_is_taken_is_one_line(index):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=r"can't listen at port \d+ of 127.0.0.1 .*--port"),
    ):
        serve.run(index, port=taken.getsockname()[1])


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_one_line(index, port):
    with pytest.raises(UserError, match=f"port {port} of 127.0.0.1"):
        serve.run(index, port=port)


def test_a_missing_extra_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands, "_OF_SERVE", ("fastapi", "no_such_module"))
    assert command.main(["serve", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == 'error: no_such_module not installed; pip install -e ".[serve]"\n'


@pytest.mark.parametrize("told_by", [signal.SIGINT, signal.SIGTERM])
def test_the_server_says_where_it_is_and_ends_when_it_is_told(index, told_by, tmp_path):
    """As a program of its own; the model is put where the command looks for it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.tiny_index import random_model\n"
        "from xmodal_jax.retrieval.index import Index\n"
        "from xmodal_jax.retrieval import serve\n"
        "serve.run(Index.open(Path(sys.argv[1]), random_model()), port=0)\n"
    )
    command = [sys.executable, program, index.store.directory]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+) shows 19 images; Ctrl-C ends it\n", line)
        assert found, line + process.stderr.read()
        assert ask(int(found[1]), "/healthz")[0] == 200
        process.send_signal(told_by)
        assert process.wait(20) == (0 if told_by == signal.SIGINT else -signal.SIGTERM)
        assert process.stderr.read() == ""
    finally:
        process.kill()
