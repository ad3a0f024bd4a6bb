"""Time and memory of a whole report on COCO's 5,000 test images and 25,000 captions, as JSON.

  python -m tests.benchmarks.evaluation
  python -m tests.benchmarks.evaluation --images=1000     # without corrected ground truth

Scores are random and so are the captions, as long as COCO's and with words as frequent as in any
text. The report has everything: ranks, precisions, NDCG with ROUGE-L computed here, ECCV Caption
and CxC, intervals, diagnostics, all of its files. Making the scores is not counted.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from xmodal_jax.metrics import corrected
from xmodal_jax.metrics.parts import parts_of
from xmodal_jax.report.build import Options, build_report
from xmodal_jax.report.collection import Collection
from xmodal_jax.report.relevance import corrected_of, relevances_of
from xmodal_jax.report.write import write_report

CAPTIONS = 5  # of an image


def make_collection(images: int, rng: np.random.Generator) -> Collection:
    """Captions of 8 to 20 words; the names of COCO's test images where there are as many."""
    lengths = np.clip(rng.normal(10.5, 2.4, images * CAPTIONS).astype(int), 8, 20)
    numbers = np.minimum(rng.zipf(1.3, lengths.sum()), 10_000)
    words = np.split(numbers, np.cumsum(lengths)[:-1])
    captions = [" ".join(f"w{number}" for number in own) for own in words]
    ids = np.arange(images)
    if images == 5000:
        ids = np.array(list(corrected._lists("original_image_to_caption")))
    names = [f"COCO_val2014_{number:012d}.jpg" for number in ids]
    return Collection(ids, np.repeat(ids, CAPTIONS), names, captions)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    images = parser.parse_args().images
    rng = np.random.default_rng(0)
    collection = make_collection(images, rng)
    own = collection.caption_rows()
    scores = rng.standard_normal((images, images * CAPTIONS), np.float32)
    scores[own, np.arange(len(own))] += 3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = round(now - began, 2), now

    relevances, _ = relevances_of(collection)
    lap("ROUGE-L relevances")
    split, _ = corrected_of(collection, "full")
    parts = parts_of(scores, collection.image_ids, collection.caption_image_ids, "full")
    report = build_report(parts, collection, Options(relevances, split), {"name": "benchmark"})
    lap("figures")
    with tempfile.TemporaryDirectory() as directory:
        write_report(Path(directory), report)
    lap("files")
    result = {
        "images": images,
        "captions": len(own),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": seconds,
        "seconds_in_all": round(sum(seconds.values()), 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_mib_before": before // 1024,  # with the scores
        "corrected": sorted({name.split("/")[0] for name in report.figures} & {"eccv", "cxc"}),
        "rsum": report.figures["rsum"].value,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
