"""DVC stage `fetch`: corpus_url -> raw text, verified, and where it came from. Logic: reprogpt.corpus.fetching."""

from pathlib import Path

from reprogpt.corpus.fetching import obtain_corpus
from reprogpt.errors import run_program
from reprogpt.files import write_json_atomic
from reprogpt.params import load_params
from reprogpt.params.fetch import FetchParams
from reprogpt.record.bar import byte_bar

RAW, SOURCE = Path("data/corpus/raw.txt"), Path("data/corpus/source.json")
DOCUMENTS = Path("data/corpus/documents.json")


def main() -> None:
    params = load_params(FetchParams)
    with byte_bar("fetch", None) as advance:
        source = obtain_corpus(RAW, **params.model_dump(), advance=advance)
    write_json_atomic(SOURCE, source.record())
    write_json_atomic(DOCUMENTS, {"ends": source.ends})
    print(f"{RAW} ({source.how}): {source.bytes} bytes, {source.characters} characters, sha256 {source.sha256[:12]}")


if __name__ == "__main__":
    run_program(main)
