"""DVC stage `fetch`: corpus_url -> raw text, verified, and where it came from. Logic: reprogpt.corpus.fetching."""

from pathlib import Path

from reprogpt.corpus.fetching import obtain_corpus
from reprogpt.errors import run_program
from reprogpt.files import write_json_atomic
from reprogpt.params import load_params
from reprogpt.params.fetch import FetchParams

RAW, SOURCE = Path("data/corpus/raw.txt"), Path("data/corpus/source.json")


def main() -> None:
    params = load_params(FetchParams)
    source = obtain_corpus(
        RAW,
        corpus_url=params.corpus_url,
        corpus_sha256=params.corpus_sha256,
        offline_corpus=params.offline_corpus,
        max_corpus_bytes=params.max_corpus_bytes,
    )
    write_json_atomic(SOURCE, source.record())
    print(f"{RAW} ({source.how}): {source.bytes} bytes, {source.characters} characters, sha256 {source.sha256[:12]}")


if __name__ == "__main__":
    run_program(main)
