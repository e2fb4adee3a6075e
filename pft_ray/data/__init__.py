"""From files to token tables: load, judge each record, name units, split, tokenise."""

from pft_ray.data.load import read_rows
from pft_ray.data.paths import pretrained_arguments, resolve_model_path
from pft_ray.data.prepare import PreparedData, Records, prepare_data, prepare_table
from pft_ray.data.propose import propose_job
from pft_ray.data.spec import DataSpec, SplitSpec
from pft_ray.data.split import role_of
from pft_ray.data.table import RawTable
from pft_ray.data.tokenize import encode_contents, load_tokenizer, tokenize_table
from pft_ray.data.tokens import TokenTable
from pft_ray.data.units import registration_fingerprints, unit_digests
from pft_ray.data.validate import Dropped, Fault, Record, validate_row

__all__ = [
    "DataSpec",
    "Dropped",
    "Fault",
    "PreparedData",
    "RawTable",
    "Record",
    "Records",
    "SplitSpec",
    "TokenTable",
    "encode_contents",
    "load_tokenizer",
    "prepare_data",
    "prepare_table",
    "pretrained_arguments",
    "propose_job",
    "read_rows",
    "registration_fingerprints",
    "resolve_model_path",
    "role_of",
    "tokenize_table",
    "unit_digests",
    "validate_row",
]
