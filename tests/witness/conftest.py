"""Set before torch is imported."""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # a C++ compiler is not needed for these few numbers
