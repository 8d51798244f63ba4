"""Models: finding, loading, the packed forward pass, generation and export."""

import os

# Progress bars and warnings of libraries would drown our own lines; both are read when the library is first imported.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
