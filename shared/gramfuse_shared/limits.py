"""Every bound on untrusted input, by name and unit. Deployments may lower some of them by settings, never raise."""

from datetime import timedelta
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

# The reference library allows 100 MB of header; a 70B model's is under 200 kB.
MAX_HEADER_BYTES: Final = 8 * MIB
MAX_TENSORS_PER_FILE: Final = 50_000
MAX_TENSOR_DIMENSIONS: Final = 8
MAX_TENSOR_NAME_CHARACTERS: Final = 512

MAX_DOCUMENT_BYTES: Final = 16 * MIB  # a manifest names every tensor once
MAX_REQUEST_BYTES: Final = 256 * KIB  # every other JSON body
MAX_HEAD_BYTES: Final = 64 * KIB  # of an HTTP request: path and headers
MAX_HEADERS: Final = 100
MIN_READ_BYTES: Final = 64 * KIB  # of an answer, that its caller takes within a minute
MAX_FILE_BYTES: Final = 4 * TIB
MAX_FILES_PER_UPLOAD: Final = 1_000

MIN_PART_BYTES: Final = 5 * MIB  # S3's smallest part, except for the last
MAX_PART_BYTES: Final = 256 * MIB
MAX_PARTS_PER_FILE: Final = 10_000  # S3's largest count
DEFAULT_PART_BYTES: Final = 16 * MIB  # clients take digests of parts of this size before they know the server's

MAX_TAPS: Final = 20_000
MAX_TAP_WIDTH: Final = 131_072
MAX_ROWS: Final = 2**53 - 1  # exact in JSON's doubles

MAX_LABELS: Final = 65_536
MAX_LABEL_SETS: Final = 256  # sets of contributions that trained the same labels: each is a merge of the head by itself
MAX_CALIBRATED_LABELS: Final = 1_000

MAX_HANDOVERS: Final = 100  # from one receipt key of a server to the next

MAX_COHORT: Final = 1_000
MAX_WEIGHT_RATIO: Final = 100.0  # between organizations that nobody may be singled out of
MAX_SECURE_COHORT: Final = 100  # every member shares two secrets with every other: messages grow with the square
LONGEST_SESSION_PAUSE: Final = timedelta(days=7)  # behind a session's last deadline; then its words and secrets go
BLOB_GRACE: Final = timedelta(hours=24)  # between the writing of bytes and their deletion, where nothing names them
MAX_FRACTION_BITS: Final = 256
MAX_REQUEST_MODELS: Final = 32
MAX_PATTERNS: Final = 1_000
MAX_SEED: Final = 2**53 - 1
MAX_RIDGE: Final = 1e6
MAX_PAGE_ITEMS: Final = 200
DEFAULT_PAGE_ITEMS: Final = 50
