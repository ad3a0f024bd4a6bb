"""The search's page in a headless Chromium, compared with what the index itself answers."""

import time
from urllib.parse import urlencode, urlsplit

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from tests.browser import browser, console_messages, requested
from tests.tiny_index import BARE, COUNT, MARKUP, served, tiny_index
from xmodal_jax.retrieval import serve
from xmodal_jax.retrieval.words import matched_words

SENTENCE = "a red circle, left of a blue square"
WORDS = ["a", "red", "circle", "left", "of", "a", "blue", "square"]
TOTAL = COUNT + 2


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return tiny_index(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def address(index):
    with served(serve.make_app(index)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def shared():
    with browser(1280, 900) as driver:
        yield driver


@pytest.fixture
def page(shared, address):
    """A page that said nothing to the console and asked nobody else, in whatever a test did."""
    console_messages(shared)
    requested(shared)
    yield shared
    # The picture that is named and is not there is no file of the index's, so nobody asks for it.
    assert console_messages(shared) == []
    asked = requested(shared)
    assert asked and {urlsplit(url).netloc for url in asked} == {urlsplit(address).netloc}
    shared.get("about:blank")


def wait(condition, what="the page"):
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)
    return found


def all_of(page, selector):
    return page.find_elements(By.CSS_SELECTOR, selector)


def texts(page, selector):
    # In one go: the page may put others in their place between two questions.
    script = "return [...document.querySelectorAll(arguments[0])].map(node => node.innerText)"
    return page.execute_script(script, selector)


def is_shown(page, count=TOTAL):
    return len(all_of(page, ".card")) == count and not all_of(page, "[aria-busy]")


def search(page, address, **fields):
    page.get(f"{address}?{urlencode(fields)}")
    wait(lambda: is_shown(page, TOTAL - ("like" in fields)))


def type_and_send(page, text):
    field = page.find_element(By.ID, "q")
    field.clear()
    field.send_keys(text, Keys.ENTER)


def lit(page):
    """For each card the tags of its regions that are lit."""
    return [
        [node.text for node in card.find_elements(By.CSS_SELECTOR, ".region.lit .tag")]
        for card in all_of(page, ".card")
    ]


def expected_tags(index, text, word):
    answer = index.query_text(text, 24)
    found = [matched_words(index, answer.query, hit.row)[word] for hit in answer.hits]
    return [[f"{one.text} {one.similarity:.2f}"] for one in found]


def test_a_sentence_that_is_typed_finds_images(page, index, address):
    page.get(address)
    wait(lambda: is_shown(page))
    assert page.find_element(By.ID, "status").text.startswith(f"{TOTAL} images.")
    type_and_send(page, SENTENCE)
    wait(lambda: texts(page, ".word") == WORDS, "the sentence")
    assert page.find_element(By.ID, "sentence").text == SENTENCE
    names = [node.get_attribute("title") for node in all_of(page, ".card .meta")]
    hits = index.query_text(SENTENCE, 24).hits
    assert names == [hit.item.file or hit.item.id for hit in hits]
    scores = [float(text) for text in texts(page, ".card .score")]
    assert scores == pytest.approx([hit.score for hit in hits], abs=6e-4)
    status = page.find_element(By.ID, "status")
    assert f"{TOTAL} of {TOTAL} images in " in status.text and "ms" in status.text
    assert "exact" in status.text and status.get_attribute("aria-live") == "polite"
    widths = page.execute_script(
        "return [...document.querySelectorAll('.card img')].map(i => i.complete && i.naturalWidth)"
    )
    assert widths == [128] * COUNT
    # The address leads to the same page, and back leads to the one before.
    assert urlsplit(page.current_url).query == urlencode({"q": SENTENCE})
    page.back()
    wait(lambda: not texts(page, ".word") and is_shown(page))


@pytest.mark.parametrize("how", ["mouse", "keyboard", "click"])
def test_a_word_lights_up_its_region_in_every_image(page, index, address, how):
    search(page, address, q=SENTENCE)
    assert lit(page) == [[]] * TOTAL
    for number in (2, 6):
        word = all_of(page, ".word")[number]
        if how == "mouse":
            ActionChains(page).move_to_element(word).perform()
        elif how == "keyboard":
            # The tabulator goes on from the field over the button to the words.
            page.find_element(By.ID, "q").click()
            ActionChains(page).send_keys(Keys.TAB * (number + 2)).perform()
        else:
            word.click()
            ActionChains(page).move_to_element(page.find_element(By.ID, "status")).perform()
            assert word.get_attribute("aria-pressed") == "true"
        assert lit(page) == expected_tags(index, SENTENCE, number)
    if how == "click":
        ActionChains(page).send_keys(Keys.ESCAPE).perform()
    else:
        ActionChains(page).move_to_element(page.find_element(By.ID, "status")).click().perform()
    assert lit(page) == [[]] * TOTAL


def test_the_lit_region_lies_where_the_box_of_the_index_is(page, index, address):
    search(page, address, q=SENTENCE)
    ActionChains(page).move_to_element(all_of(page, ".word")[2]).perform()
    answer = index.query_text(SENTENCE, 24)
    for card, hit in zip(all_of(page, ".card"), answer.hits, strict=True):
        region = matched_words(index, answer.query, hit.row)[2].region
        box = index.boxes(hit.row)[region]
        outer = card.find_element(By.CSS_SELECTOR, ".picture").rect
        inner = card.find_element(By.CSS_SELECTOR, ".region.lit").rect
        found = [
            (inner["x"] - outer["x"]) / outer["width"],
            (inner["y"] - outer["y"]) / outer["height"],
            (inner["x"] + inner["width"] - outer["x"]) / outer["width"],
            (inner["y"] + inner["height"] - outer["y"]) / outer["height"],
        ]
        assert found == pytest.approx(box.tolist(), abs=0.01)


def test_a_region_shows_its_words(page, index, address):
    search(page, address, q=SENTENCE)
    answer = index.query_text(SENTENCE, 24)
    for number in (0, 3):
        words = matched_words(index, answer.query, answer.hits[number].row)
        regions = all_of(page, f".card:nth-child({number + 1}) .region:not(.idle)")
        assert len(regions) == len({word.region for word in words})
        ActionChains(page).move_to_element(regions[-1]).perform()
        said = texts(page, ".said span")
        # All words of one region, and in the sentence the same ones are marked.
        region = next(w.region for w in words if f"{w.text} {w.similarity:.2f}" == said[0])
        own = [at for at, word in enumerate(words) if word.region == region]
        assert sorted(said) == sorted(f"{words[at].text} {words[at].similarity:.2f}" for at in own)
        marked = [at for at, word in enumerate(all_of(page, ".word")) if "told" in classes(word)]
        assert marked == own
    ActionChains(page).move_to_element(page.find_element(By.ID, "status")).perform()
    assert not all_of(page, ".said span") and not all_of(page, ".word.told")


def classes(node):
    return node.get_attribute("class").split()


def test_a_click_on_an_image_searches_for_its_like(page, index, address):
    search(page, address, q=SENTENCE)
    first = index.query_text(SENTENCE, 24).hits[1].item.id
    all_of(page, ".card .open")[1].click()
    wait(lambda: texts(page, ".like em"), "the image that was asked")
    assert texts(page, ".like em") == [first] and not all_of(page, ".word")
    like = [hit.item for hit in index.query_item(first, 24).hits if hit.item.id != first]
    wait(lambda: is_shown(page, TOTAL - 1))
    names = [node.get_attribute("title") for node in all_of(page, ".card .meta")]
    assert names == [item.file or item.id for item in like]
    # The same with the keyboard.
    all_of(page, ".card .open")[0].send_keys(Keys.ENTER)
    wait(lambda: texts(page, ".like em") == [like[0].id])


def test_markup_in_sentences_and_names_is_text(page, index, address):
    query = "<img src=x onerror=document.title='broken'> <b> red </b> & \"square\" 😀 circle"
    page.get(address)
    wait(lambda: is_shown(page))
    type_and_send(page, query)
    wait(lambda: all_of(page, ".word"))
    assert page.find_element(By.ID, "sentence").text == query
    assert "circle" in texts(page, ".word") and "red" in texts(page, ".word")
    assert page.title == f"{query} · search" and not all_of(page, "#sentence img, #sentence b")
    name = next(n for n in all_of(page, ".card .meta") if n.get_attribute("title") == MARKUP)
    assert name.find_element(By.CSS_SELECTOR, ".name").text == MARKUP
    search(page, address, like=MARKUP)
    assert texts(page, ".like em") == [MARKUP] and page.title != "broken"


def test_an_image_with_the_focus_names_the_words_of_its_regions(page, index, address):
    search(page, address, q=SENTENCE)
    answer = index.query_text(SENTENCE, 24)
    page.find_element(By.ID, "q").click()
    # The button and the words come before the first image.
    ActionChains(page).send_keys(Keys.TAB * (1 + len(WORDS) + 1)).perform()
    expected = {}
    for word in matched_words(index, answer.query, answer.hits[0].row):
        expected.setdefault(word.region, set()).add(word.text)
    shown = [set(text.split()) for text in texts(page, ".card:first-child .tag")]
    assert sorted(map(sorted, shown)) == sorted(map(sorted, expected.values()))
    ActionChains(page).send_keys(Keys.TAB).perform()
    assert not any(texts(page, ".card:first-child .tag"))


def test_words_that_the_model_does_not_read_are_told(page, address):
    sentence = "red square " * 15 + "..."
    search(page, address, q=sentence)
    # Of 24 tokens two are no words.
    assert texts(page, ".word") == ["red", "square"] * 11
    assert texts(page, ".unread")[0].split() == ["red", "square"] * 4 + ["..."]
    assert "reads no more than 22 of these words" in page.find_element(By.ID, "hint").text
    search(page, address, q="a red square!")
    assert "no more than" not in page.find_element(By.ID, "hint").text


def test_an_item_without_a_picture_shows_its_boxes_on_a_blank_one(page, index, address):
    search(page, address, q=SENTENCE)
    answer = index.query_text(SENTENCE, 24)
    blank = [
        hit.item.id
        for card, hit in zip(all_of(page, ".card"), answer.hits, strict=True)
        if card.find_elements(By.CSS_SELECTOR, ".picture.blank")
    ]
    assert sorted(blank) == sorted([BARE, MARKUP])
    for card, hit in zip(all_of(page, ".card"), answer.hits, strict=True):
        shown = card.find_elements(By.CSS_SELECTOR, ".region")
        matched = {word.region for word in matched_words(index, answer.query, hit.row)}
        assert len(shown) == (12 if hit.item.id in blank else len(matched))
        if hit.item.id == MARKUP:  # 200 wide and 100 high
            size = card.find_element(By.CSS_SELECTOR, ".picture").size
            assert size["width"] / size["height"] == pytest.approx(2, rel=0.02)


def test_on_a_phone_all_fits_and_a_tap_lights_up(index, address):
    with browser(390, 800, touch=True, dark=True) as phone:
        search(phone, address, q=SENTENCE)
        size = "return [document.documentElement.scrollWidth, innerWidth]"
        assert phone.execute_script(size) == [390, 390]
        assert phone.execute_script("return getComputedStyle(document.body).backgroundColor") == (
            "rgb(20, 23, 28)"
        )
        x, y = (int(all_of(phone, ".word")[2].rect[k]) + 8 for k in ("x", "y"))
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            event = {"type": kind, "touchPoints": points}
            phone.execute_cdp_cmd("Input.dispatchTouchEvent", event)
        wait(lambda: lit(phone) == expected_tags(index, SENTENCE, 2))
        assert console_messages(phone) == []


def contrast(first, second):
    """Of two colours, by the definition of WCAG 2."""
    lights = []
    for colour in (first, second):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
        )
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(address, dark):
    """The colours as the browser resolves them, and those of words under dark text."""
    names = ["paper", "raised", "ink", "faint", "strong", "on-strong", "focus"]
    script = (
        "const style = getComputedStyle(document.documentElement);"
        "return arguments[0].map(name => style.getPropertyValue('--' + name).trim())"
    )
    words = (
        "return [...Array(8).keys()].map(n => { const node = document.createElement('i');"
        "node.className = 'c' + n; document.body.append(node);"
        "return getComputedStyle(node).getPropertyValue('--c').trim() })"
    )
    with browser(dark=dark) as driver:
        driver.get(address)
        found = dict(zip(names, driver.execute_script(script, names), strict=True))
        marks = driver.execute_script(words)
    assert (contrast(found["paper"], "#ffffff") > 4.5) == dark
    for ground in ("paper", "raised"):
        assert contrast(found[ground], found["ink"]) > 7
        assert contrast(found[ground], found["faint"]) > 4.5
        assert contrast(found[ground], found["focus"]) > 3
    assert contrast(found["strong"], found["on-strong"]) > 7
    assert len(set(marks)) == 8 and min(contrast(mark, "#16181d") for mark in marks) > 7


def test_a_model_without_regions_finds_images_and_says_that_nothing_lights_up(shared, tmp_path):
    index = tiny_index(tmp_path, "vse")
    with served(serve.make_app(index)) as port:
        search(shared, f"http://127.0.0.1:{port}/", q=SENTENCE)
        assert "one vector for an image" in shared.find_element(By.ID, "hint").text
        assert shared.find_element(By.ID, "sentence").text == SENTENCE
        assert not all_of(shared, ".word, .bar, .region:not(.idle)")
        index.remove([item.id for item in index.items()])
        shared.refresh()
        wait(lambda: "0 of 0 images" in shared.find_element(By.ID, "status").text)
        assert shared.find_element(By.ID, "hint").text == ""
    assert console_messages(shared) == []


def test_a_mistake_is_told_and_the_next_search_works(shared, address):
    shared.get(f"{address}?{urlencode({'like': 'nobody'})}")
    problem = shared.find_element(By.ID, "error")
    wait(lambda: "no item 'nobody'" in problem.text)
    assert problem.get_attribute("role") == "alert" and not all_of(shared, ".card")
    type_and_send(shared, "red")
    wait(lambda: is_shown(shared) and texts(shared, ".word") == ["red"])
    assert problem.text == ""
    assert all("404" in message for message in console_messages(shared))


@pytest.mark.parametrize(("setting", "outcome"), [("", pytest.skip), ("1", pytest.fail)])
def test_without_a_browser_tests_are_skipped_but_not_in_ci(monkeypatch, setting, outcome):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setenv("CI", setting)
    with pytest.raises(outcome.Exception, match="bash launch/install.sh test"), browser():
        pass
