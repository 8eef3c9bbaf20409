"""Makes tokenizer.json for a repository that ships another form, in a process of its own.

Run as ``python -m hilbert.processors.convert FOLDER FILE VOCAB_SIZE``: transformers builds its fast tokenizer
from the folder's files and writes it to FILE. Nothing else of Hilbert imports transformers for tokenizing.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Convert; on failure the last line of stderr says why."""
    folder, file, vocab_size = sys.argv[1:]
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Without a vocabulary file transformers makes a tokenizer of nothing but special tokens.
        if len(tokenizer) < int(vocab_size) // 2:
            raise ValueError(f"its files yield {len(tokenizer)} tokens of {vocab_size}")
        tokenizer.backend_tokenizer.save(file)
    except ImportError as error:
        print(f"{error}: pip install 'hilbert[torch]'", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
