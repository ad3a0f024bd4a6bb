"""Where records come from: one module for each way in which features and captions lie on disk.

`source.py` says what a source is. `precomp.py` reads SCAN's layout, in which all parts of a data
set lie together. In the other layouts captions (`captions.py`), region features (`features.py`) and
scene graphs (`scene_graphs.py`) come in files of their own, which `joined.py` brings together.
`data_pipeline.synthetic` draws its own images.
"""

from data_pipeline.sources.captions import read_captions
from data_pipeline.sources.features import BottomUpTsv, FeatureFolders
from data_pipeline.sources.joined import JoinedSource
from data_pipeline.sources.precomp import ScanPrecomp
from data_pipeline.sources.scene_graphs import SceneGraphs
from data_pipeline.sources.source import Contents, Source, examples

__all__ = [
    "BottomUpTsv",
    "Contents",
    "FeatureFolders",
    "JoinedSource",
    "ScanPrecomp",
    "SceneGraphs",
    "Source",
    "examples",
    "read_captions",
]
