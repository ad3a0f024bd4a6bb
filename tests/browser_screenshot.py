"""A screenshot of the search's page, such as README's: a sentence with one word chosen.

bash launch/demo.sh
python -m tests.browser_screenshot runs/demo/index docs/search.png
"""

import argparse
import io
import time
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from selenium.webdriver.common.by import By

from tests.browser import browser
from tests.tiny_index import served
from xmodal_jax.retrieval import serve
from xmodal_jax.retrieval.index import Index

_COMPLETE = (
    "return document.querySelectorAll('.card').length > 0"
    " && [...document.images].every(image => image.complete || image.loading === 'lazy')"
)


def take(index, sentence, word, *, width=1120, height=790, dark=False):
    """The page as a picture, after a click on a word of the sentence."""
    with served(serve.make_app(index)) as port, browser(width, height, dark=dark) as driver:
        for _ in range(2):  # The first search compiles; the second shows the time it takes.
            driver.get(f"http://127.0.0.1:{port}/?{urlencode({'q': sentence})}")
            deadline = time.monotonic() + 60
            while not driver.execute_script(_COMPLETE):
                assert time.monotonic() < deadline, "the page did not come"
                time.sleep(0.1)
        number = sentence.split().index(word)
        driver.find_elements(By.CSS_SELECTOR, ".word")[number].click()
        time.sleep(1)  # Colours change slowly.
        return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sentence", default="a small yellow star inside a large red circle")
    parser.add_argument("--word", default="star")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    picture = take(Index.open(args.index), args.sentence, args.word, dark=args.dark)
    # Few colours make a small file: it is a part of the repository.
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(args.out, optimize=True)
    print(f"{args.out}: {picture.width} x {picture.height}, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
