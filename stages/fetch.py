"""DVC stage `fetch`: corpus_url -> raw text, verified, and where it came from. Logic: reprogpt.data.fetch."""

from reprogpt.data.fetch import fetch_corpus
from reprogpt.files import write_json_atomic
from reprogpt.params.fetch import FetchParams
from reprogpt.params.loader import load_params
from reprogpt.paths import DOCUMENTS, RAW_TEXT, SOURCE
from reprogpt.progress import byte_bar
from stages import run_stage


def main() -> None:
    params = load_params(FetchParams)
    with byte_bar("fetch", None) as advance:
        source = fetch_corpus(RAW_TEXT, **params.model_dump(), advance=advance)
    write_json_atomic(SOURCE, source.record())
    write_json_atomic(DOCUMENTS, {"ends": source.ends})
    size = f"{source.bytes} bytes, {source.characters} characters"
    print(f"{RAW_TEXT} ({source.how}): {size}, sha256 {source.sha256[:12]}")


if __name__ == "__main__":
    run_stage(main)
